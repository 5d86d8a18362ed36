"""The passes that charge text: in which precision, compiled or not, and that nothing of it stays in the model."""

import copy

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.evaluate.scoring import COMPILED_FROM, Scorer, worth_compiling
from stages.execution import Execution
from stages.perplexity import token_losses
from stages.tokens import IGNORED_LABEL, Batch


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(ModelConfig(n_layers=2, hidden_size=32, n_heads=2, n_kv_heads=1), 53).eval()
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, 53, (3, 17))
    labels = tokens[:, 1:].copy()
    labels[2, 9:] = IGNORED_LABEL
    zeros = np.zeros_like(labels)
    return Batch(tokens[:, :-1], labels, zeros, zeros + np.arange(16))


def test_fp32_is_the_plain_pass_and_bf16_is_near_it(model, batch):
    exact = token_losses(model, batch, "cpu")
    assert np.array_equal(Scorer(model, "cpu")(batch), exact)
    near = Scorer(model, "cpu", "bf16")(batch)
    assert near == pytest.approx(exact, abs=0.05) and not np.array_equal(near, exact)
    assert not near[2, 9:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compilers for processors take a minute")
def test_compiled_blocks_give_the_same_losses_and_are_gone_afterwards(model, batch):
    there = copy.deepcopy(model).cuda()
    exact = token_losses(there, batch, "cuda")
    assert Scorer(there, "cuda", compiled=True)(batch) == pytest.approx(exact, abs=1e-4)
    assert not any("forward" in vars(block) for block in there.blocks)
    assert np.array_equal(token_losses(there, batch, "cuda"), exact)


@pytest.mark.parametrize(
    ("setting", "device", "n_slots", "expected"),
    [("auto", "cuda", COMPILED_FROM, True), ("auto", "cuda", COMPILED_FROM - 1, False), ("auto", "cpu", 10**9, False),
     (True, "cpu", 1, True), (False, "cuda", 10**9, False)],
)  # fmt: skip
def test_what_is_compiled(setting, device, n_slots, expected):
    assert worth_compiling(Execution(compile=setting), device, n_slots) == expected
