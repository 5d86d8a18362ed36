"""The packages of FlashAttention, and what is ours around them: documents as offsets, heads in groups, sinks."""

import importlib.machinery
import math
import sys
import types
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model import flash, flash_packages
from model.backends import attend, choose, make_mask
from model.context import EVERYTHING, Places, Reach, count_documents, visible
from model.sinks import Sinks, add_sink_gradients_, add_sinks_, sinks_of
from tests.model.small import places
from tests.model.test_attention import case


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled kernels there: benchmarks/attention.py compares them")
@pytest.mark.parametrize(("window", "sinks"), [(5, 4), (2, 1), (3, 8), (90, 4)])
@pytest.mark.parametrize("lengths", [[100], [40, 3, 57], [64, 36], None])
def test_sinks_are_added_to_a_window_exactly(window, sinks, lengths, monkeypatch):
    """The kernels themselves, by Triton's interpreter, which needs a process without compiled ones."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    where = places(lengths) if lengths else Places(torch.arange(50).expand(2, 50))  # None: rows stay rows
    B, T = where.positions.shape
    bounds = flash.document_bounds(where, Reach(window, sinks), as_rows=True)
    assert (bounds.offsets is None) is (lengths is None)
    where_sinks = Sinks(bounds.starts, bounds.documents, bounds.tokens)
    q, k, v = (torch.randn(B, T, heads, 24, requires_grad=True) for heads in (4, 2, 2))
    heads = [x.transpose(1, 2).repeat_interleave(4 // x.shape[2], dim=1) for x in (q, k, v)]
    scores = (heads[0] @ heads[1].mT * 0.3).masked_fill(~visible(where, where, Reach(window)), -math.inf)
    exact = (heads[0] @ heads[1].mT * 0.3).masked_fill(~visible(where, where, Reach(window, sinks)), -math.inf)
    oracle = (exact.softmax(-1) @ heads[2]).transpose(1, 2)
    upstream = torch.randn(oracle.shape)
    expected = torch.autograd.grad(oracle, (q, k, v), upstream)
    out, lse = (scores.softmax(-1) @ heads[2]).transpose(1, 2), scores.logsumexp(-1)
    # The window's own part of the gradients, under the whole softmax; the kernels add the rest.
    p = (exact - exact.logsumexp(-1, keepdim=True)).exp() * visible(where, where, Reach(window))
    dout = upstream.transpose(1, 2)
    delta = (oracle.transpose(1, 2) * dout).sum(-1, keepdim=True)
    ds = p * (dout @ heads[2].mT - delta) * 0.3
    per_head = (ds @ heads[1], ds.mT @ heads[0], p.mT @ dout)
    parts = [x.unflatten(1, (-1, n)).sum(2).transpose(1, 2) for x, n in zip(per_head, (1, 2, 2), strict=True)]

    def as_given(x):
        return (x if lengths is None else x[0]).detach().contiguous()

    out, lse, q, k, v, upstream, *gradients = map(as_given, (out, lse, q, k, v, upstream, *parts))
    add_sinks_(out, lse, q, k, v, bounds.starts, window, sinks, 0.3)
    torch.testing.assert_close(out, as_given(oracle), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, as_given(exact.logsumexp(-1)), atol=1e-5, rtol=1e-5)
    add_sink_gradients_(*gradients, q, k, v, out, upstream, lse, where_sinks, window, sinks, 0.3)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, as_given(theirs), atol=1e-4, rtol=1e-4)


def test_documents_become_offsets_of_rows_laid_end_to_end():
    where = Places(torch.tensor([[0, 1, 0], [0, 1, 0]]), torch.tensor([[0, 0, 1], [0, 0, -1]]))
    bounds = flash.document_bounds(where, EVERYTHING)
    assert (bounds.offsets.tolist(), bounds.starts, bounds.longest) == ([0, 2, 3, 5, 6], None, 3)
    rows = Places(torch.zeros(2, 3, dtype=torch.int64))
    assert flash.document_bounds(rows, EVERYTHING).offsets.tolist() == [0, 3, 6]
    assert flash.document_bounds(rows, EVERYTHING, as_rows=True) == (None, None, None, None, 0)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    padding=st.integers(0, 5),
)
def test_the_offsets_are_those_that_counting_on_the_device_gave(rows, padding):
    """The number of documents, known before, changes nothing."""
    T = max(map(sum, rows)) + padding
    segments = torch.full((len(rows), T), -1)
    for row, lengths in zip(segments, rows, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True).flatten()
    offsets = F.pad(begins.nonzero()[:, 0], (0, 1), value=begins.numel())
    where = Places(torch.zeros_like(segments), segments)
    assert count_documents(segments) == len(offsets) - 1
    for found in (flash.document_offsets(where), flash.document_offsets(where, count_documents(segments))):
        assert found.dtype == torch.int32 and found.tolist() == offsets.tolist()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), sinks=st.integers(1, 4))
def test_every_token_knows_its_document_and_the_sinks_are_its_first(lengths, sinks):
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    found = sinks_of(offsets, sum(lengths), sinks)
    assert all(x.dtype == torch.int32 for x in found)
    assert found.documents.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    assert found.starts.tolist() == offsets[found.documents].tolist()
    wanted = [min(begin + s, sum(lengths) - 1) for begin in offsets[:-1].tolist() for s in range(sinks)]
    assert found.tokens.tolist() == wanted


@pytest.mark.parametrize(
    ("heads", "keys", "tokens", "window", "groups"),
    [
        (16, 16, 32768, 256, 2),
        (16, 4, 32768, 256, 2),
        (12, 12, 2048, 256, 1),
        (48, 48, 32768, 256, 6),
        (6, 1, 65536, 8, 1),
    ],
)
def test_heads_of_a_window_go_backward_in_groups(heads, keys, tokens, window, groups):
    q, k = (torch.empty(tokens, n, 128, device="meta") for n in (heads, keys))
    found = flash.head_groups(q, k, window)
    assert len(found) == groups
    assert [n for queries, _ in found for n in range(heads)[queries]] == list(range(heads))
    assert [n for _, group in found for n in range(keys)[group]] == list(range(keys))
    assert len(flash.head_groups(q, k, 0)) == 1


def _window(length: int, causal: bool, left: int, right: int) -> torch.Tensor:
    """Who sees whom, by flash-attn's words: keys from i - left to i + right, -1 being no end."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = torch.ones(length, length, dtype=torch.bool)
    seen &= (j >= i - left) if left >= 0 else True
    return seen & ((j <= i + right) if right >= 0 else True) & ((j <= i) if causal else True)


# The signatures are those of flash_attn/flash_attn_interface.py of flash-attn 2.8.3, to the names of arguments.
def _flash_attn_forward(
    q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
    return_softmax,
):  # fmt: skip
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0, 0, None, False)
    q_BHTD, k_BKTD, v_BKTD = (x.float().transpose(1, 2) for x in (q, k, v))
    seen = _window(q.shape[1], causal, window_size_left, window_size_right)
    out = F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, attn_mask=seen, scale=softmax_scale, enable_gqa=True)
    k_BHTD = k_BKTD.repeat_interleave(q_BHTD.shape[1] // k_BKTD.shape[1], dim=1)
    lse = (q_BHTD @ k_BHTD.mT * softmax_scale).masked_fill(~seen, -math.inf).logsumexp(-1)
    return out.transpose(1, 2).to(q.dtype).contiguous(), lse.contiguous(), torch.empty(0), torch.empty(2)


def _flash_attn_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
    window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    assert (dropout_p, softcap, alibi_slopes, deterministic) == (0, 0, None, False) and softmax_lse.is_contiguous()
    do, q, k, v, o = (x.float().transpose(1, 2) for x in (dout, q, k, v, out))
    many = q.shape[1] // k.shape[1]
    big_k, big_v = (x.repeat_interleave(many, dim=1) for x in (k, v))
    seen = _window(q.shape[2], causal, window_size_left, window_size_right)
    p = ((q @ big_k.mT * softmax_scale) - softmax_lse[..., None]).exp() * seen
    delta = (do * o).sum(-1, keepdim=True)
    ds = p * (do @ big_v.mT - delta) * softmax_scale
    dq.copy_((ds @ big_k).transpose(1, 2))
    dk.copy_((ds.mT @ q).unflatten(1, (-1, many)).sum(2).transpose(1, 2))
    dv.copy_((p.mT @ do).unflatten(1, (-1, many)).sum(2).transpose(1, 2))
    return delta


def _flash_attn_varlen_forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
    window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None,
    leftpad_k=None, seqused_k=None, zero_tensors=False,
):  # fmt: skip
    ends = cu_seqlens_q.tolist()
    assert ends == cu_seqlens_k.tolist() and max(b - a for a, b in pairwise(ends)) <= max_seqlen_q
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    for a, b in pairwise(ends):
        options = (dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, False)
        part, part_lse, *_ = _flash_attn_forward(q[None, a:b], k[None, a:b], v[None, a:b], *options)
        out[a:b], lse[:, a:b] = part[0], part_lse[0]
    return out, lse, torch.empty(0), torch.empty(2)


def _flash_attn_varlen_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
    softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    zero_tensors=False,
):  # fmt: skip
    assert softmax_lse.is_contiguous()
    ends = cu_seqlens_q.tolist()
    for a, b in pairwise(ends):
        rows = [x[None, a:b] for x in (dout, q, k, v, out)]
        _flash_attn_backward(
            *rows, softmax_lse[None, :, a:b].contiguous(), *(x[None, a:b] for x in (dq, dk, dv)), dropout_p,
            softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
        )  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    """No flash-attn: a stand-in with its functions, by SDPA in fp32. It shows that ours are called as theirs want."""
    module = types.ModuleType("flash_attn.flash_attn_interface")
    for function in (
        _flash_attn_forward, _flash_attn_backward, _flash_attn_varlen_forward, _flash_attn_varlen_backward,
    ):  # fmt: skip
        setattr(module, function.__name__, function)
    compiled = types.ModuleType("flash_attn_2_cuda")
    compiled.__spec__ = importlib.machinery.ModuleSpec("flash_attn_2_cuda", None)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    monkeypatch.setitem(sys.modules, "flash_attn_2_cuda", compiled)
    flash_packages.has_flash2.cache_clear()
    yield
    flash_packages.has_flash2.cache_clear()


def test_fa2_is_found_where_its_compiled_part_is(stand_in):
    assert choose(case(generation=8), "fa2") == "fa2"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("reach", [EVERYTHING, Reach(7, 0), Reach(7, 3)])
def test_fa2_is_sdpa_forward_and_backward(stand_in, monkeypatch, packed, keys, reach):
    if reach.sinks:
        pytest.importorskip("triton")
    monkeypatch.setattr("model.flash.WINDOW_ACCUMULATOR_BYTES", 2 * 40 * 4 * 16 * 4 // 2)  # heads in two groups
    where = places([13, 20, 5], padding=2) if packed else Places(torch.arange(40).expand(2, 40))
    rows = len(where.positions)
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, heads, 40, 16, requires_grad=True) for heads in (4, keys, keys))
    ours = attend(q, k, v, make_mask("fa2", where, reach, True), 0.3)
    theirs = attend(q, k, v, make_mask("sdpa", where, reach, True), 0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, (q, k, v), upstream) for y in (ours, theirs))
    for mine, oracle in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_is_one_that_torch_compile_can_take(stand_in, packed):
    where = places([13, 20, 5], padding=2) if packed else Places(torch.arange(40).expand(2, 40))
    bounds = flash.document_bounds(where, EVERYTHING, as_rows=True)
    q, k, v = (torch.randn(*(() if packed else (2,)), 40, 4, 16, requires_grad=True) for _ in range(3))
    torch.library.opcheck(flash.flash, (q, k, v, "fa2", 0.3, True, 0, 0, *bounds))
