"""On a GPU the processor runs ahead of the device: nothing in a micro-batch waits, and nothing compiles again."""

import contextlib
import dataclasses

import pytest
import torch

from model.backends import NAMES, unfit
from model.decoder import Decoder
from stages.tokens import TokenRows
from stages.train.batches import Batches, MicroBatch, to_device
from stages.train.objective import CausalObjective, autocast, compile_parts
from tests.stages.test_train import MODEL

CONFIG = dataclasses.replace(MODEL, n_kv_heads=4)  # varlen has no grouped keys


@contextlib.contextmanager
def whoever_waits_fails():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("pattern", ["full", "swa", "swa+mla"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_packed_micro_batch_waits_for_nothing(packed, backend, pattern, compiled):
    config = dataclasses.replace(
        CONFIG, layer_pattern=pattern, window=5, sink_tokens=0 if backend == "varlen" else 4, kv_lora_rank=16,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32,
    )  # fmt: skip
    rows = TokenRows(packed / "data/pack/train")
    model = Decoder(config, rows.vocab_size, rows.context_length)
    model.initialise(torch.Generator().manual_seed(0))
    model.cuda().attention_backend = backend
    objective = CausalObjective(model)
    with autocast("cuda", "bf16"):
        for kind in dict.fromkeys(config.kinds):
            if reason := unfit(backend, model._case(kind, rows.context_length, packed=True)):
                pytest.skip(reason)
    if compiled:
        compile_parts(objective)

    def learn(batch: MicroBatch) -> None:
        with autocast("cuda", "bf16"):
            loss, _ = objective(*to_device(batch, "cuda"))
        loss.backward()

    batches = Batches(rows, 0, 48, 0, 1, 8, 0, "cuda")
    first, *others = batches.at(0).micro_batches
    batches.close()
    assert len({batch.n_documents for batch in others}) > 1
    learn(first)
    with whoever_waits_fails(), torch.compiler.set_stance("fail_on_recompile"):
        for batch in others:
            learn(batch)
    assert all(parameter.grad is not None for parameter in model.parameters())
