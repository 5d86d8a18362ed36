# mypy: disable-error-code="name-defined, no-untyped-def"
"""Triton kernels that add attention sinks to FlashAttention over a window, in place.

Softmax over two sets of keys is a weighted mean of softmax over each, with weights exp(lse) of their
log-sum-exps. So a window of FlashAttention and the few first keys of each document merge exactly:

    lse = log(exp(lse_w) + sum over sinks s of exp(score_s))
    out = out_w exp(lse_w - lse) + sum over s of exp(score_s - lse) v_s

Example: window weight exp(lse_w) = 6 and two sinks with exp(score) 1 and 3: out = 0.6 out_w + 0.1 v_0 + 0.3 v_1.
A sink that the window already holds counts once: it is left out here.

Backward, FlashAttention needs no change: from the merged out and lse it makes the window's gradients as they
are under the whole softmax. These kernels add those of the sinks. So nothing is kept but what attention keeps
anyway. A block of queries goes through its documents one by one, by matrix products of 16 keys.

Shapes: N tokens of all rows, H query heads, K key heads, D and V widths of keys and values, S sinks.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

BLOCK = 64


@functools.cache
def _kernels() -> tuple[Any, Any]:
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

    @triton.jit
    def merge(
        q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, N, scale, window,
        H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
        DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        head, key_head = tl.program_id(1), tl.program_id(1) // (H // K)
        n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        real = n < N
        start = tl.load(start_ptr + n, mask=real, other=0)
        furthest = tl.max(tl.where(real, n - start, 0))
        document = tl.min(tl.where(real, start, N))
        last = tl.max(start)
        d, c, s = tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, SP)
        rows = n.to(tl.int64) * H + head
        lse_at = lse_ptr + head.to(tl.int64) * N + n
        out_at = out_ptr + rows[:, None] * V + c[None, :]
        out_mask = real[:, None] & (c < V)[None, :]
        if furthest >= window:
            q = tl.load(q_ptr + rows[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
            lse_w = tl.load(lse_at, mask=real, other=0.0)
            lse = lse_w
            out = tl.load(out_at, mask=out_mask, other=0.0).to(tl.float32)
            # Documents of this block, one after the other: mostly there is one.
            while document <= last:
                at = (document + s).to(tl.int64) * K + key_head
                exists = (s < S) & (document + s < N)
                k = tl.load(k_ptr + at[:, None] * D + d[None, :], mask=exists[:, None] & (d < D)[None, :], other=0.0)
                v = tl.load(v_ptr + at[:, None] * V + c[None, :], mask=exists[:, None] & (c < V)[None, :], other=0.0)
                mine = real & (start == document)
                seen = mine[:, None] & exists[None, :] & (n[:, None] - document - s[None, :] >= window)
                score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
                high = tl.maximum(lse, tl.max(score, axis=1))
                new = high + tl.log(tl.exp(lse - high) + tl.sum(tl.exp(score - high[:, None]), axis=1))
                p = tl.exp(score - new[:, None])
                out = out * tl.exp(lse - new)[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
                lse = new
                document = tl.min(tl.where(real & (start > document), start, 2147483647))
            tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=out_mask)
            tl.store(lse_at, lse, mask=real)

    @triton.jit
    def merge_backward(
        q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, start_ptr, document_ptr, dq_ptr, dk_ptr, dv_ptr,
        N, scale, window,
        H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
        DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        head, key_head = tl.program_id(1), tl.program_id(1) // (H // K)
        n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        real = n < N
        start = tl.load(start_ptr + n, mask=real, other=0)
        furthest = tl.max(tl.where(real, n - start, 0))
        document = tl.min(tl.where(real, start, N))
        last = tl.max(start)
        d, c, s = tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, SP)
        rows = n.to(tl.int64) * H + head
        q_at, v_at = rows[:, None] * D + d[None, :], rows[:, None] * V + c[None, :]
        q_mask, v_mask = real[:, None] & (d < D)[None, :], real[:, None] & (c < V)[None, :]
        if furthest >= window:
            q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0)
            dout = tl.load(dout_ptr + v_at, mask=v_mask, other=0.0)
            out = tl.load(out_ptr + v_at, mask=v_mask, other=0.0)
            delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1)
            lse = tl.load(lse_ptr + head.to(tl.int64) * N + n, mask=real, other=0.0)
            dq = tl.load(dq_ptr + q_at, mask=q_mask, other=0.0).to(tl.float32)
            while document <= last:
                at = (document + s).to(tl.int64) * K + key_head
                exists = (s < S) & (document + s < N)
                k = tl.load(k_ptr + at[:, None] * D + d[None, :], mask=exists[:, None] & (d < D)[None, :], other=0.0)
                v = tl.load(v_ptr + at[:, None] * V + c[None, :], mask=exists[:, None] & (c < V)[None, :], other=0.0)
                mine = real & (start == document)
                seen = mine[:, None] & exists[None, :] & (n[:, None] - document - s[None, :] >= window)
                score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
                p = tl.where(seen, tl.exp(score - lse[:, None]), 0.0)
                ds = p * (tl.dot(dout, tl.trans(v), input_precision="ieee") - delta[:, None]) * scale
                dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
                if tl.max(tl.where(mine, n, 0)) - document >= window:
                    number = tl.load(document_ptr + document).to(tl.int64)
                    into = (number * S + s) * K + key_head
                    dk = tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
                    dv = tl.dot(tl.trans(p.to(dout.dtype)), dout, input_precision="ieee")
                    tl.atomic_add(dk_ptr + into[:, None] * D + d[None, :], dk, mask=exists[:, None] & (d < D)[None, :])
                    tl.atomic_add(dv_ptr + into[:, None] * V + c[None, :], dv, mask=exists[:, None] & (c < V)[None, :])
                document = tl.min(tl.where(real & (start > document), start, 2147483647))
            tl.store(dq_ptr + q_at, dq.to(dq_ptr.dtype.element_ty), mask=q_mask)

    return merge, merge_backward


def _sizes(q_NHD: Tensor, k_NKD: Tensor, v_NKV: Tensor, sinks: int) -> tuple[tuple[int, int], dict[str, int]]:
    N, H, D = q_NHD.shape
    V = v_NKV.shape[-1]
    pad = [1 << (max(width, 16) - 1).bit_length() for width in (D, V, sinks)]  # what a matrix product takes
    names = {"H": H, "K": k_NKD.shape[1], "D": D, "V": V, "S": sinks, "BLOCK": BLOCK}
    names |= {"DP": pad[0], "VP": pad[1], "SP": pad[2]}
    return (-(-N // BLOCK), H), names


def add_sinks_(
    out_NHV: Tensor, lse_HN: Tensor, q_NHD: Tensor, k_NKD: Tensor, v_NKV: Tensor, starts_N: Tensor, window: int,
    sinks: int, scale: float,
) -> None:  # fmt: skip
    """Adds the first `sinks` keys of each document to `out` and `lse` of attention over a window, in place.

    Args:
        starts_N: the token at which the document of each token begins, int32.
    """
    grid, sizes = _sizes(q_NHD, k_NKD, v_NKV, sinks)
    _kernels()[0][grid](q_NHD, k_NKD, v_NKV, out_NHV, lse_HN, starts_N, q_NHD.shape[0], scale, window, **sizes)


def add_sink_gradients_(
    dq_NHD: Tensor, dk_NKD: Tensor, dv_NKV: Tensor, q_NHD: Tensor, k_NKD: Tensor, v_NKV: Tensor, out_NHV: Tensor,
    dout_NHV: Tensor, lse_HN: Tensor, offsets: Tensor, starts_N: Tensor, documents_N: Tensor, window: int, sinks: int,
    scale: float,
) -> None:  # fmt: skip
    """Adds what the sinks have in the gradients; `out` and `lse` are the merged ones.

    Args:
        offsets: the token at which each document begins, and the number of tokens, int32 [documents + 1].
        documents_N: which document each token belongs to, int32.
    """
    N, K = k_NKD.shape[:2]
    n_documents = offsets.shape[0] - 1
    dk = k_NKD.new_zeros(n_documents * sinks, K, k_NKD.shape[2], dtype=torch.float32)
    dv = v_NKV.new_zeros(n_documents * sinks, K, v_NKV.shape[2], dtype=torch.float32)
    grid, sizes = _sizes(q_NHD, k_NKD, v_NKV, sinks)
    _kernels()[1][grid](
        q_NHD, k_NKD, v_NKV, out_NHV, dout_NHV, lse_HN, starts_N, documents_N, dq_NHD, dk, dv, N, scale, window, **sizes
    )
    # A document shorter than its sinks has gradients of zero there, and adds them to some other token.
    places = (offsets[:-1, None] + torch.arange(sinks, device=offsets.device)).flatten().clamp(max=N - 1)
    dk_NKD.index_add_(0, places, dk.to(dk_NKD.dtype))
    dv_NKV.index_add_(0, places, dv.to(dv_NKV.dtype))
