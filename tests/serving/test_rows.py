"""One token of many sequences in few kernels: the logits are those of the decoder itself, compiled or not."""

import pytest
import torch

from serving.reader import Reader
from serving.rows import Rows
from stages.errors import BadInput
from tests.model.test_decoder import decoder, tokens
from tests.serving.test_single import CAPACITY, VARIANTS


def equal_to_the_decoder(model, compiled):
    """Three rows at different places; the fourth has nobody."""
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 20, 9)]
    reader = Reader(model, 4, CAPACITY)
    with torch.inference_mode():
        right, rows = Reader(model, 4, CAPACITY), Rows(model, CAPACITY, compiled)
        for row, prompt in enumerate(prompts):
            reader.fill(row, prompt, 0)
            right.fill(row, prompt, 0)
        for place in range(15):
            inputs = [place + 2, place + 5, 7]
            positions = [len(prompt) + place for prompt in prompts]
            caches = [cache.part(0, 3, CAPACITY) for cache in reader.caches]
            found = rows.step(torch.tensor(inputs)[:, None], torch.tensor(positions)[:, None], caches, 37)
            torch.testing.assert_close(found, right.step(inputs, positions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_decoder(variant):
    model = decoder(**VARIANTS[variant])
    if Rows.serves(model):
        equal_to_the_decoder(model, "false")
    else:
        assert model.config.n_experts or set(model.config.kinds) - {"full", "swa"}


def test_compiled_once_for_all_layers():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    equal_to_the_decoder(decoder(n_layers=4, fused_qkv=True), "true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_graphs_of_a_step_that_is_given_up_are_not_replayed(monkeypatch):
    """They would read the matrices of the old Rows, which are freed."""

    class Recording:
        def __init__(self, step, inputs, positions, device):
            if reader.rows.is_compiled and reader.graphs:
                raise RuntimeError("no compiler")

        def run(self, inputs, positions):
            return inputs

    monkeypatch.setattr("serving.reader.Graph", Recording)
    model = decoder()
    reader = Reader(model, 4, CAPACITY)
    first = reader.rows = Rows(model, CAPACITY, "true")
    reader._replayed([1], [0])
    assert reader.rows is first
    reader._replayed([1, 2], [0, 0])
    assert not reader.rows.is_compiled and [key[0] for key in reader.graphs] == [2]


@pytest.mark.parametrize("variant", ["cache of one's own", "experts", "latent"])
def test_compiling_what_is_not_compiled_is_refused(variant):
    with pytest.raises(BadInput, match="--compile true: experts, latent attention"):
        Reader(decoder(**VARIANTS[variant]), 1, CAPACITY, "true")


def test_guesses_are_rows_that_share_a_row_of_the_caches():
    model, prompt = decoder(fused_qkv=True), tokens(1, 9)[0].tolist()
    reader, right = Reader(model, 2, CAPACITY), Reader(model, 2, CAPACITY)
    reader.fill(0, prompt, 0)
    right.fill(0, prompt, 0)
    with torch.inference_mode():
        inputs, positions = [3, 5, 5, 2], [9, 10, 11, 12]
        caches = [cache.part(0, 1, CAPACITY) for cache in reader.caches]
        found = Rows(model, CAPACITY, "false").step(
            torch.tensor(inputs)[:, None], torch.tensor(positions)[:, None], caches, 16, shared=True
        )
        torch.testing.assert_close(found, right.guess(inputs, 9), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(reader.step([7], [13]), right.step([7], [13]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compiled", ["true", "tuned"])
def test_compiling_on_a_cpu_is_refused(compiled):
    with pytest.raises(BadInput, match=f"--compile {compiled}: a step is compiled on a GPU alone"):
        Reader(decoder(), 1, CAPACITY, compiled)
