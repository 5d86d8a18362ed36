"""Attention: who sees whom, in every kind and every backend that runs on a CPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model import flex
from model.attention import Attention
from model.backends import Case, choose, make_mask, unfit
from model.config import ModelConfig
from model.context import EVERYTHING, Context, Mask, Places, Reach, visible
from model.flash_packages import PACKAGES
from model.latent import LatentAttention
from tests.model.small import context_of, drawn, places

CONFIG = ModelConfig(hidden_size=12, n_heads=2, n_kv_heads=1, window=3, sink_tokens=2)
LATENT = ModelConfig(
    hidden_size=12, n_heads=2, layer_pattern="mla", kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=6, v_head_dim=5
)


def sees(i: int, j: int, window: int, sinks: int) -> bool:
    """The definition, for one document."""
    return j <= i and (i - j < window or j < sinks)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    window=st.integers(1, 6),
    sinks=st.integers(0, 3),
    padding=st.integers(0, 2),
)
def test_gradients_reach_exactly_the_visible_positions(lengths, window, sinks, padding):
    config = ModelConfig(hidden_size=12, n_heads=2, n_kv_heads=1, window=window, sink_tokens=sinks)
    where = places(lengths, padding)
    total = sum(lengths)
    attention = drawn(Attention(config, "swa"))
    x = torch.randn(1, total + padding, 12, requires_grad=True)
    output = attention(x, context_of(config, where, "swa"))
    segments, positions = where.segments[0].tolist(), where.positions[0].tolist()
    for i in range(total):
        reached = torch.autograd.grad(output[0, i].sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0
        expected = [
            segments[i] == segments[j] and sees(positions[i], positions[j], window, sinks)
            for j in range(total + padding)
        ]
        assert reached.tolist() == expected


@pytest.mark.parametrize("attention", [Attention(CONFIG, "full"), LatentAttention(LATENT)])
def test_full_and_latent_attention_reach_everything_before(attention):
    config, kind = (LATENT, "mla") if isinstance(attention, LatentAttention) else (CONFIG, "full")
    x = torch.randn(1, 7, 12, requires_grad=True)
    output = drawn(attention)(x, context_of(config, places([7]), kind))
    for i in range(7):
        reached = torch.autograd.grad(output[0, i].sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0
        assert reached.tolist() == [j <= i for j in range(7)]


@pytest.mark.parametrize("window", [9, 20])
def test_a_window_that_holds_the_row_is_none(window):
    config = ModelConfig(hidden_size=12, n_heads=2, n_kv_heads=1, window=window)
    windowed, full = drawn(Attention(config, "swa")), drawn(Attention(config, "full"))
    x, where = torch.randn(1, 9, 12), places([9])
    torch.testing.assert_close(
        windowed(x, context_of(config, where, "swa")), full(x, context_of(config, where, "full"))
    )


def test_cross_attention_sees_all_of_the_memory_and_positions_turn_nothing():
    attention = drawn(Attention(CONFIG))
    x, memory = torch.randn(1, 4, 12), torch.randn(1, 6, 12)
    where = Places(torch.arange(4)[None])
    context = Context(where, context_of(CONFIG, where, "full").rotations, {"full": Mask("sdpa", causal=False)})
    output = attention.cross(x, memory, context)
    shuffled = attention.cross(x, memory[:, torch.randperm(6)], context)
    torch.testing.assert_close(output, shuffled, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output, attention.cross(x, memory[:, :5], context))


def test_queries_at_two_positions_turn_differently_and_all_heads_alike():
    """A rotation by the number of the head instead of the position would fail both."""
    attention = drawn(LatentAttention(LATENT))
    with torch.no_grad():  # every head gets the same weights
        attention.query_up.weight.copy_(attention.query_up.weight[:10].repeat(2, 1))
    x = torch.randn(1, 1, 12).expand(1, 5, 12)
    _, q_pe, _, _ = attention.compress(x, context_of(LATENT, places([5]), "mla"))
    torch.testing.assert_close(q_pe[:, 0], q_pe[:, 1])
    assert all(not torch.allclose(q_pe[0, 0, 0], q_pe[0, 0, i], atol=1e-3) for i in range(1, 5))


def test_qk_norm_bounds_the_scores():
    config = ModelConfig(hidden_size=12, n_heads=2, n_kv_heads=2, qk_norm_gain=False)
    attention = drawn(Attention(config))
    q, k, _ = attention.project(torch.randn(1, 20, 12) * 100, context_of(config, places([20]), "full"))
    assert (q @ k.mT * attention.scale).abs().max() <= math.sqrt(config.width_of_head) * (1 + 1e-5)


rows = st.lists(st.integers(1, 300), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=rows, padding=st.integers(0, 200), window=st.sampled_from([0, 1, 100, 256]), sinks=st.sampled_from([0, 4]),
    causal=st.booleans(), packed=st.booleans(),
)  # fmt: skip
def test_blocks_of_flex_hold_exactly_what_is_visible(lengths, padding, window, sinks, causal, packed):
    if not packed:
        lengths, padding = [sum(lengths)], 0
    where = places(lengths, padding)
    where = where if packed else Places(where.positions)
    reach = Reach(window, sinks if window else 0)
    causal = causal or bool(window)
    T = where.positions.shape[1]
    exact = visible(where, where, reach, causal)[0, 0]
    rule = flex.rule(where, reach, causal)
    slot = torch.arange(T)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(rule(zero, zero, slot[:, None], slot[None, :]).expand(T, T), exact)
    partial, whole = flex.visible_blocks(where, reach, causal)
    n = -(-T // flex.BLOCK)
    padded = F.pad(exact, (0, n * flex.BLOCK - T, 0, n * flex.BLOCK - T))
    blocks = padded.view(n, flex.BLOCK, n, flex.BLOCK).transpose(1, 2)
    assert not (blocks.any(-1).any(-1) & ~partial[0] & ~whole[0]).any(), "a visible block is left out"
    assert blocks.all(-1).all(-1)[whole[0]].all(), "a block counted whole is not"
    assert not (partial & whole).any()


def test_flex_attends_as_the_oracle_does():
    """FlexAttention has a forward pass on CPUs, uncompiled."""
    where = places([150, 90, 30], padding=18)
    q, k, v = (torch.randn(1, heads, 288, 16) for heads in (4, 2, 2))
    for reach in (EVERYTHING, Reach(40, 4)):
        from torch.nn.attention.flex_attention import flex_attention

        blocks = make_mask("flex", where, reach, True).form
        ours = flex_attention(q, k, v, block_mask=blocks, scale=0.3, enable_gqa=True)
        oracle = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible(where, where, reach), scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(ours, oracle, atol=1e-5, rtol=1e-5)


def case(**changes) -> Case:
    values = {
        "device": "cuda", "dtype": torch.bfloat16, "n_heads": 4, "n_kv_heads": 4, "key_width": 64, "value_width": 64,
        "length": 2048, "reach": EVERYTHING, "packed": True, "causal": True, "generation": 9,
    }  # fmt: skip
    return Case(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("flex", {"device": "cpu"}, "GPUs only"),
        ("varlen", {"dtype": torch.float32}, "bf16 or fp16, not in float32"),
        ("varlen", {"reach": Reach(256, 4)}, "windows but no sinks"),
        ("varlen", {"n_kv_heads": 2}, "no grouped keys"),
        ("varlen", {"value_width": 128}, "of one width"),
        ("fa2", {}, "needs the package flash-attn "),
        ("fa4", {}, "needs the package flash-attn-4"),
    ],
)
def test_a_backend_that_cannot_says_why(name, changes, reason):
    assert reason in unfit(name, case(**changes))
    with pytest.raises(ValueError, match=f"attention_backend {name}: .*{reason}"):
        choose(case(**changes), name)


def test_what_cannot_is_not_chosen():
    assert choose(case(device="cpu")) == "sdpa"
    assert choose(case()) == "varlen"
    assert choose(case(n_kv_heads=2)) == "flex"
    assert choose(case(reach=Reach(256, 4))) == "flex"
    assert choose(case(reach=Reach(256, 0))) == "flex"
    assert choose(case(reach=Reach(256, 0), key_width=128, value_width=128)) == "varlen"
    assert choose(case(reach=Reach(256, 4), key_width=128, value_width=128)) == "flex"
    assert choose(case(packed=False)) == "sdpa"
    with pytest.raises(ValueError, match="there are auto, sdpa, flex, varlen, fa2, fa4"):
        choose(case(), "flash")


@pytest.fixture
def both_packages(monkeypatch):
    """As if flash-attn and flash-attn-4 were installed."""
    for name, package in PACKAGES.items():
        monkeypatch.setitem(PACKAGES, name, package._replace(is_installed=lambda: True))


def test_fa4_is_first_where_it_is_installed_and_can(both_packages):
    for reach in (Reach(0, 0), Reach(256, 4), Reach(256, 0)):
        assert choose(case(reach=reach)) == "fa4"
    assert choose(case(reach=Reach(256, 4), key_width=68, value_width=68)) == "flex"
    assert choose(case(packed=False)) == "fa4"


@pytest.mark.parametrize("generation", [8, 9])
def test_fa2_is_next_but_for_long_documents_in_wide_heads_and_plain_rows(monkeypatch, generation):
    monkeypatch.setitem(PACKAGES, "fa2", PACKAGES["fa2"]._replace(is_installed=lambda: True))
    for reach in (Reach(0, 0), Reach(256, 4), Reach(256, 0)):
        for n_kv_heads in (4, 2):
            assert choose(case(reach=reach, n_kv_heads=n_kv_heads, generation=generation)) == "fa2"
    wide = {"key_width": 128, "value_width": 128, "generation": generation}
    assert choose(case(**wide)) == "fa2"
    assert choose(case(**wide, length=8192)) == "flex"
    assert choose(case(**wide, length=8192, reach=Reach(256, 4))) == "fa2"
    assert choose(case(packed=False, generation=generation)) == "sdpa"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("fa2", {"generation": 7}, "Ampere and later GPUs only"),
        ("fa2", {"value_width": 128}, "of one width that 8 divides, up to 256, not 64 and 128"),
        ("fa2", {"key_width": 36, "value_width": 36}, "that 8 divides"),
        ("fa2", {"causal": False, "reach": Reach(256, 0)}, "no window that looks both ways"),
        ("fa4", {"generation": 8}, "Hopper and Blackwell GPUs only"),
        ("fa4", {"key_width": 256, "value_width": 256}, "up to 192, not 256 and 256"),
    ],
)
def test_a_package_that_is_installed_and_cannot_says_why(both_packages, name, changes, reason):
    with pytest.raises(ValueError, match=f"attention_backend {name}: .*{reason}"):
        choose(case(**changes), name)
