"""Watched attention against materialised attention, for every kind, and what is made of it."""

import base64
from itertools import pairwise

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.evaluate.attention import SCORES, Tally, repeated_tokens, tally
from stages.evaluate.head_ablation import head_ablations
from stages.evaluate.maps import attention_maps
from stages.tokens import Batch
from stages.watching import Block, keys_of, watch

VOCABULARY = 97
KINDS = {
    "full": {},
    "swa": {"layer_pattern": "swa", "window": 37, "sink_tokens": 3},
    "mla": {
        "layer_pattern": "mla", "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    },
    "hybrid": {"layer_pattern": "swa*1+mla*1", "window": 20, "sink_tokens": 2, "kv_lora_rank": 8,
               "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
}  # fmt: skip


def decoder(n_layers: int = 2, **settings: object) -> Decoder:
    config = ModelConfig(n_layers=n_layers, hidden_size=32, n_heads=4, n_kv_heads=2, init_std=0.3, **settings)
    model = Decoder(config, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def packed(length: int, seed: int = 0) -> Batch:
    """Two rows, each with three documents of random tokens and some padding."""
    generator = np.random.default_rng(seed)
    inputs = generator.integers(VOCABULARY, size=(2, length))
    segments, positions = np.full((2, length), -1), np.zeros((2, length), np.int64)
    for row, cuts in enumerate(([0, length // 3, length // 2, length - 5], [0, 7, length // 4, length - 1])):
        for segment, (start, end) in enumerate(pairwise(cuts)):
            segments[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
    return Batch(inputs, inputs, segments, positions)


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in (batch.inputs, batch.segments, batch.positions))


def materialised(model: Decoder, batch: Batch) -> list[torch.Tensor]:
    """The probabilities of every layer, [B, H, T, T] each."""
    inputs, segments, positions = tensors(batch)
    context, found = model.context(inputs, segments, positions), []
    x = model.embed(inputs, positions)
    for block in model.blocks:
        found.append(block.attention.probabilities(block.attention_norm(x), context))
        x, _ = block(x, context)
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_blocks_of_queries_are_the_materialised_attention_and_leave_the_model_as_it_is(kind):
    model, batch = decoder(**KINDS[kind]), packed(1024)
    whole, worst = materialised(model, batch), 0.0
    real = torch.from_numpy(batch.segments >= 0)

    def look(block: Block) -> None:
        nonlocal worst
        expected = whole[block.layer][:, :, block.queries]
        assert block.p.sum(-1) == pytest.approx(torch.ones(block.p.shape[:3]), abs=1e-5), "rows sum to 1"
        counted = real[:, None, block.queries, None]
        worst = max(worst, float(((expected[..., block.keys] - block.p) * counted).abs().max()))
        left_out = torch.ones(1024, dtype=torch.bool)
        left_out[block.keys] = False
        assert not ((expected * counted)[..., left_out]).any(), "no key that is seen is left out"

    assert watch(model, *tensors(batch), look) == [0, 1]
    assert worst < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_scores_agree_with_those_of_materialised_attention(kind):
    model, batch = decoder(**KINDS[kind]), packed(1024)
    found = tally(model, [batch], "cpu")
    inputs, segments, positions = tensors(batch)
    expected = Tally(2, 4, max(1, model.config.sink_tokens))
    expected.read(inputs, segments, positions)
    slots = torch.arange(1024)
    for layer, p in enumerate(materialised(model, batch)):
        log_p = p.clamp(min=1e-38).log()
        expected.look(Block(layer, slots, slots, (p > 0).any(dim=1), p, log_p, log_p))
    assert found.means() == pytest.approx(expected.means(), abs=1e-4, rel=1e-5)
    assert found.cosine() == pytest.approx(expected.cosine(), abs=1e-4)


def test_a_window_needs_its_keys_and_the_sinks_of_its_documents_alone():
    from model.context import Reach

    positions = torch.tensor([[*range(10), *range(20)]])
    assert keys_of(positions, Reach(0, 0), torch.arange(26, 28)).tolist() == list(range(10, 28))
    assert keys_of(positions, Reach(4, 2), torch.arange(26, 28)).tolist() == [10, 11, 23, 24, 25, 26, 27]
    assert keys_of(positions, Reach(4, 0), torch.arange(26, 28)).tolist() == [23, 24, 25, 26, 27]
    assert keys_of(positions, Reach(4, 2), torch.arange(11, 13)).tolist() == [10, 11, 12]


@torch.inference_mode()
def test_the_induction_score_of_repeated_tokens_is_that_of_the_one_place_to_copy_from():
    model = decoder()
    batch = repeated_tokens(VOCABULARY, 64, seed=0)
    assert batch.inputs.shape == (8, 64) and (batch.inputs[:, :32] == batch.inputs[:, 32:]).all()
    p = materialised(model, batch)
    expected = [[float(one[:, h, torch.arange(32, 64), torch.arange(1, 33)].mean()) for h in range(4)] for one in p]
    found = tally(model, [batch], "cpu").means()[SCORES.index("induction")]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


class Rows:
    """As many rows of TokenRows as these tests need."""

    context_length, n_rows = 64, 2

    def batch(self, row_ids: np.ndarray) -> Batch:
        batch = packed(64)
        return Batch(*(array[row_ids] for array in (batch.inputs, batch.labels, batch.segments, batch.positions)))


@pytest.mark.parametrize("kind", ["full", "mla"])
@torch.inference_mode()
def test_ablation_is_the_loss_of_a_model_without_what_the_head_hands_on(kind):
    model = decoder(**KINDS[kind])
    found = head_ablations(model, Rows(), 10**6, "cpu")
    inputs, segments, positions = tensors(packed(64))

    def loss() -> float:
        logits = model(inputs, segments, positions).flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, inputs.flatten()))

    whole = loss()
    assert sorted(found) == [(layer, head) for layer in range(2) for head in range(4)]
    output = model.blocks[1].attention.output.weight
    width = output.shape[1] // 4
    output[:, 2 * width : 3 * width] = 0
    assert found[1, 2] == pytest.approx(loss() - whole, abs=2e-6) and found[1, 2] != 0


@torch.inference_mode()
def test_maps_are_the_probabilities_in_steps_of_a_255th():
    model, text = decoder(), [0, 5, 9, 5, 9, 11]
    [found, other] = attention_maps(model, [text, text[:3]], "cpu")
    assert found["tokens"] == text and found["layers"] == [0, 1] and other["tokens"] == text[:3]
    inputs = torch.tensor([text])
    context = model.context(inputs)
    block = model.blocks[0]
    p = block.attention.probabilities(block.attention_norm(model.embed(inputs, context.places.positions)), context)
    picture = np.frombuffer(base64.b64decode(found["heads"][0][3]), np.uint8).reshape(6, 6)
    assert picture / 255 == pytest.approx(p[0, 3].numpy(), abs=0.5 / 255 + 1e-6)
