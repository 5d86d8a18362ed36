# mypy: disable-error-code="no-untyped-def"
"""The Triton kernels of model/sinks.py, which says what they compute. Only whoever has tiles to compute imports this.

A program takes a tile of BLOCK queries of one head: `tiles`, int32 [4, tiles], has for each where its document begins,
its first query, where its queries end, and the number of the document among those that reach beyond the window. Heads
come first in the grid: those of the same tokens lie side by side in memory.

Shapes: N tokens, H query heads, K key heads, D and V widths of keys and values, S sinks; DP, VP and SP padded to what a
matrix product takes. T tokens of a row of `lse`, [B, H, T].
"""

import triton
import triton.language as tl


@triton.jit
def merge(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, tile_ptr, N, T, scale, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the sinks into `out` and `lse` of the window."""
    head, key_head = tl.program_id(0), tl.program_id(0) // (H // K)
    tile_at, tiles = tile_ptr + tl.program_id(1), tl.num_programs(1)
    start, first, end = tl.load(tile_at), tl.load(tile_at + tiles), tl.load(tile_at + 2 * tiles)
    if first < end:
        d, c, s = tl.arange(0, DP)[None, :], tl.arange(0, VP)[None, :], tl.arange(0, SP)
        n = first + tl.arange(0, BLOCK)
        real, exists = n < end, (s < S) & (start + s < N)
        rows = (n.to(tl.int64) * H + head)[:, None]
        lse_at = lse_ptr + (start // T).to(tl.int64) * (H - 1) * T + head * T + n
        out_at, out_mask = out_ptr + rows * V + c, real[:, None] & (c < V)
        q = tl.load(q_ptr + rows * D + d, mask=real[:, None] & (d < D), other=0.0)
        out = tl.load(out_at, mask=out_mask, other=0.0)
        lse = tl.load(lse_at, mask=real, other=0.0)
        at = ((start + s).to(tl.int64) * K + key_head)[:, None]
        k = tl.load(k_ptr + at * D + d, mask=exists[:, None] & (d < D), other=0.0)
        v = tl.load(v_ptr + at * V + c, mask=exists[:, None] & (c < V), other=0.0)
        seen = exists[None, :] & (n[:, None] - start - s[None, :] >= window)
        score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
        high = tl.maximum(lse, tl.max(score, axis=1))
        new = high + tl.log(tl.exp(lse - high) + tl.sum(tl.exp(score - high[:, None]), axis=1))
        p = tl.exp(score - new[:, None])
        out = out.to(tl.float32) * tl.exp(lse - new)[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=out_mask)
        tl.store(lse_at, new, mask=real)


@triton.jit
def merge_backward(
    q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, tile_ptr, dq_ptr, dk_ptr, dv_ptr, N, T, scale, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to dq, and to the sums dk [documents, K, D, S] and dv [documents, K, V, S] in fp32."""
    head, key_head = tl.program_id(0), tl.program_id(0) // (H // K)
    tile_at, tiles = tile_ptr + tl.program_id(1), tl.num_programs(1)
    start, first, end = tl.load(tile_at), tl.load(tile_at + tiles), tl.load(tile_at + 2 * tiles)
    if first < end:
        d, c, s = tl.arange(0, DP)[None, :], tl.arange(0, VP)[None, :], tl.arange(0, SP)
        n = first + tl.arange(0, BLOCK)
        real, exists = n < end, (s < S) & (start + s < N)
        rows = (n.to(tl.int64) * H + head)[:, None]
        q_at, q_mask = rows * D + d, real[:, None] & (d < D)
        v_at, v_mask = rows * V + c, real[:, None] & (c < V)
        q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0)
        dout = tl.load(dout_ptr + v_at, mask=v_mask, other=0.0)
        out = tl.load(out_ptr + v_at, mask=v_mask, other=0.0)
        dq = tl.load(dq_ptr + q_at, mask=q_mask, other=0.0)
        lse_at = lse_ptr + (start // T).to(tl.int64) * (H - 1) * T + head * T + n
        lse = tl.load(lse_at, mask=real, other=0.0)
        at = ((start + s).to(tl.int64) * K + key_head)[:, None]
        k = tl.load(k_ptr + at * D + d, mask=exists[:, None] & (d < D), other=0.0)
        v = tl.load(v_ptr + at * V + c, mask=exists[:, None] & (c < V), other=0.0)
        delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1)
        seen = real[:, None] & exists[None, :] & (n[:, None] - start - s[None, :] >= window)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        p = tl.where(seen, tl.exp(score - lse[:, None]), 0.0)
        ds = p * (tl.dot(dout, tl.trans(v), input_precision="ieee") - delta[:, None]) * scale
        dq = dq.to(tl.float32) + tl.dot(ds.to(k.dtype), k, input_precision="ieee")
        tl.store(dq_ptr + q_at, dq.to(dq_ptr.dtype.element_ty), mask=q_mask)
        dk = tl.dot(tl.trans(q), ds.to(q.dtype), input_precision="ieee")
        dv = tl.dot(tl.trans(dout), p.to(dout.dtype), input_precision="ieee")
        into = tl.load(tile_at + 3 * tiles).to(tl.int64) * K + key_head
        d, c, s = tl.trans(d), tl.trans(c), s[None, :]
        tl.atomic_add(dk_ptr + (into * D + d) * S + s, dk, mask=(d < D) & (s < S), sem="relaxed")
        tl.atomic_add(dv_ptr + (into * V + c) * S + s, dv, mask=(c < V) & (s < S), sem="relaxed")


@triton.jit
def add_sums(
    dk_ptr, dv_ptr, sums_k_ptr, sums_v_ptr, tile_ptr, window,
    K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Adds the sums of `merge_backward` to dk and dv, where the first tile of a document is."""
    key_head, tile_at, tiles = tl.program_id(0), tile_ptr + tl.program_id(1), tl.num_programs(1)
    start, first, end = tl.load(tile_at), tl.load(tile_at + tiles), tl.load(tile_at + 2 * tiles)
    if (first < end) & (first == start + window):
        d, c, s = tl.arange(0, DP)[None, :], tl.arange(0, VP)[None, :], tl.arange(0, SP)[:, None]
        exists = (s < S) & (start + s < end)
        at = (start + s).to(tl.int64) * K + key_head
        into = tl.load(tile_at + 3 * tiles).to(tl.int64) * K + key_head
        mask = exists & (d < D)
        dk = tl.load(dk_ptr + at * D + d, mask=mask, other=0.0).to(tl.float32)
        dk += tl.load(sums_k_ptr + (into * D + d) * S + s, mask=mask, other=0.0)
        tl.store(dk_ptr + at * D + d, dk.to(dk_ptr.dtype.element_ty), mask=mask)
        mask = exists & (c < V)
        dv = tl.load(dv_ptr + at * V + c, mask=mask, other=0.0).to(tl.float32)
        dv += tl.load(sums_v_ptr + (into * V + c) * S + s, mask=mask, other=0.0)
        tl.store(dv_ptr + at * V + c, dv.to(dv_ptr.dtype.element_ty), mask=mask)
