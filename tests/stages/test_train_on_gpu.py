"""On a GPU the processor runs ahead of the device: nothing in a micro-batch waits, and nothing compiles again."""

import contextlib
import dataclasses

import pytest
import torch

from model.backends import NAMES
from model.config import ModelConfig
from model.decoder import Decoder
from stages.tokens import TokenRows
from stages.train.batches import Batches, MicroBatch, to_device
from stages.train.objective import CausalObjective, autocast, compile_parts
from tests.stages.conftest import markov_documents, write_split

CONFIG = ModelConfig(
    n_layers=3, hidden_size=128, n_heads=4, n_kv_heads=4, head_dim=64, layer_pattern="full+swa+mla", window=32,
    kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=64,
)  # fmt: skip


@contextlib.contextmanager
def whoever_waits_fails():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_packed_micro_batch_waits_for_nothing(tmp_path, backend, compiled):
    write_split(tmp_path, "train", markov_documents(400, seed=0), context_length=256)
    rows = TokenRows(tmp_path / "data/pack/train")
    config = dataclasses.replace(CONFIG, sink_tokens=0 if backend == "varlen" else 4)
    model = Decoder(config, rows.vocab_size, rows.context_length)
    model.initialise(torch.Generator().manual_seed(0))
    model.cuda().attention_backend = backend
    objective = CausalObjective(model)
    try:
        with autocast("cuda", "bf16"):
            model.context(*[torch.zeros(1, rows.context_length, dtype=torch.int64, device="cuda")] * 2)
    except ValueError as unfit:
        pytest.skip(str(unfit))
    if compiled:
        compile_parts(model, objective)

    def learn(batch: MicroBatch) -> None:
        with autocast("cuda", "bf16"):
            loss, _ = objective(*to_device(batch, "cuda"))
        loss.backward()

    batches = Batches(rows, 0, 24, 0, 1, 4, 0, "cuda")
    first, *others = batches.at(0).micro_batches
    batches.close()
    assert len({batch.n_documents for batch in others}) > 1
    learn(first)
    with whoever_waits_fails(), torch.compiler.set_stance("fail_on_recompile"):
        for batch in others:
            learn(batch)
    assert all(parameter.grad is not None for parameter in model.parameters())
