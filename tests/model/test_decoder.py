"""The identities a decoder must satisfy, over random shapes. That it equals code that is not ours, Hugging
Face's Llama, Qwen3, OLMo 2 and Gemma, is tests/stages/test_huggingface.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model.attention import visible
from model.config import ModelConfig, padded_vocabulary
from model.decoder import Decoder

VOCABULARY = 97
PLACEMENTS = [(True, False), (False, True), (True, True)]
QK_NORMS = [(False, "head"), (True, "head"), (True, "full")]


def decoder(seed: int = 0, vocab_size: int = VOCABULARY, **changes: object) -> Decoder:
    """A small decoder with weights large enough that every part of it matters."""
    values = {"n_layers": 2, "hidden_size": 24, "n_heads": 4, "n_kv_heads": 2, **changes}
    model = Decoder(ModelConfig(**values), vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim < 2 else 0.0, 0.3, generator=generator)
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments and positions of one row with documents of these lengths."""
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return segments, torch.cat([torch.arange(n) for n in lengths])[None]


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), placement=st.sampled_from(PLACEMENTS))
def test_a_document_in_a_packed_row_is_the_document_alone(lengths, placement):
    model = decoder(pre_norm=placement[0], post_norm=placement[1])
    row = tokens(1, sum(lengths))
    segments, positions = packed(lengths)
    together = model(row, segments, positions)
    for start, length in zip(itertools.accumulate([0, *lengths]), lengths, strict=False):
        alone = model(row[:, start : start + length])
        torch.testing.assert_close(together[:, start : start + length], alone, atol=1e-5, rtol=1e-5)


def test_what_stands_in_another_document_changes_logits_by_exactly_zero():
    model = decoder()
    segments, positions = packed([5, 7])
    row = tokens(1, 12)
    changed = row.clone()
    changed[0, :5] = (changed[0, :5] + 31) % VOCABULARY
    assert torch.equal(model(row, segments, positions)[:, 5:], model(changed, segments, positions)[:, 5:])


def test_gradients_reach_exactly_the_visible_positions():
    model = decoder(n_layers=1)
    segments, positions = packed([4, 5])
    embedded = model.embedding(tokens(1, 9)).detach().requires_grad_()
    cosine, sine, mask = model.rotation_and_mask(tokens(1, 9), segments, positions)
    outputs = model.blocks[0](embedded, cosine, sine, mask)
    allowed = visible(segments)[0, 0]
    for i in range(9):
        gradient = torch.autograd.grad(outputs[0, i].sum(), embedded, retain_graph=True)[0][0].abs().sum(-1)
        assert torch.equal(gradient > 0, allowed[i])


def test_logits_depend_on_distances_between_positions_not_on_the_positions():
    model = decoder()
    row = tokens(2, 10)
    positions = torch.arange(10)[None].expand(2, -1)
    torch.testing.assert_close(model(row, None, positions), model(row, None, positions + 1000), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(model(row, None, positions), model(row, None, positions * 2), atol=1e-2)


@pytest.mark.parametrize("scope", ["head", "full"])
def test_with_qk_norm_the_size_of_the_query_weights_does_not_matter(scope):
    model = decoder(qk_norm=True, qk_norm_scope=scope)
    row = tokens(1, 12)
    before = model(row)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query.weight.mul_(10)
    torch.testing.assert_close(model(row), before, atol=1e-3, rtol=1e-3)


def test_in_the_hybrid_placement_every_branch_has_rms_one():
    model = decoder(post_norm=True)
    for block in model.blocks:
        torch.nn.init.ones_(block.attention_post_norm.weight)
    branch = model.blocks[0].attention_post_norm(torch.randn(3, 24) * 50)
    torch.testing.assert_close(branch.pow(2).mean(-1).sqrt(), torch.ones(3), atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(kv=st.sampled_from([1, 2, 4]), qk=st.sampled_from(QK_NORMS))
def test_probabilities_are_those_that_the_output_was_made_with(kv, qk):
    model = decoder(n_kv_heads=kv, qk_norm=qk[0], qk_norm_scope=qk[1])
    attention = model.blocks[0].attention
    segments, positions = packed([3, 6])
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(1))
    cosine, sine, mask = model.rotation_and_mask(tokens(1, 9), segments, positions)
    probabilities = attention.probabilities(x, cosine, sine, mask)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 4, 9))
    values = attention.value(x).view(1, 9, kv, 6).transpose(1, 2).repeat_interleave(4 // kv, dim=1)
    by_hand = attention.output((probabilities @ values).transpose(1, 2).reshape(1, 9, -1))
    torch.testing.assert_close(by_hand, attention(x, cosine, sine, mask), atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    placement=st.sampled_from(PLACEMENTS),
    qk=st.sampled_from(QK_NORMS),
    tied=st.booleans(),
    width=st.sampled_from([0, 8]),
)
def test_the_parameter_count_follows_its_formula(layers, heads, placement, qk, tied, width):
    config = ModelConfig(
        n_layers=layers, hidden_size=24, n_heads=heads[0], n_kv_heads=heads[1], head_dim=width, pre_norm=placement[0],
        post_norm=placement[1], qk_norm=qk[0], qk_norm_scope=qk[1], tie_embeddings=tied,
    )  # fmt: skip
    counted = sum(parameter.numel() for parameter in Decoder(config, 300).parameters())
    assert counted == config.n_parameters(300)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_guessing(placement, tied):
    config = ModelConfig(pre_norm=placement[0], post_norm=placement[1], tie_embeddings=tied)
    model = Decoder(config, 1000)
    model.initialise(torch.Generator().manual_seed(0))
    row = torch.randint(0, 1000, (4, 65), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.15)


def test_initial_weights_are_those_of_the_seed_whatever_was_drawn_before():
    first, second = (Decoder(ModelConfig(), 300) for _ in range(2))
    first.initialise(torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    second.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_rows_of_the_embedding_beyond_the_vocabulary_never_appear():
    model = decoder(vocab_size=130)
    assert model.embedding.weight.shape[0] == padded_vocabulary(130) == 256
    assert model(tokens(1, 4)).shape == (1, 4, 130)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads 3 does not divide n_heads 4"),
        ({"hidden_size": 30}, "not a multiple of n_heads"),
        ({"hidden_size": 12}, "even width"),
        ({"pre_norm": False}, "both false"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
)
def test_combinations_that_are_no_architecture_are_refused_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        ModelConfig(**changes)
