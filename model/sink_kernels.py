# mypy: disable-error-code="no-untyped-def"
"""The Triton kernels of model/sinks.py, which says what they compute. Only whoever has sinks to add imports this.

A program takes BLOCK queries of one head and goes through their documents one by one: mostly there is one.

Shapes: N tokens, H query heads, K key heads, D and V widths of keys and values, S sinks; DP, VP and SP padded to what a
matrix product takes. T tokens of a row of `lse`, [B, H, T].
"""

import triton
import triton.language as tl


@triton.jit
def merge(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, N, T, scale, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the sinks into `out` and `lse` of the window."""
    head, key_head = tl.program_id(1), tl.program_id(1) // (H // K)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = n < N
    start = tl.load(start_ptr + n, mask=real, other=0)
    furthest = tl.max(tl.where(real, n - start, 0))
    document = tl.min(tl.where(real, start, N))
    last = tl.max(start)
    d, c, s = tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, SP)
    rows = n.to(tl.int64) * H + head
    lse_at = lse_ptr + (n // T).to(tl.int64) * (H - 1) * T + head.to(tl.int64) * T + n
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
    N, T, scale, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DP: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to dq, and to the sums dk [documents, S, K, D] and dv [documents, S, K, V] in fp32."""
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
        lse_at = lse_ptr + (n // T).to(tl.int64) * (H - 1) * T + head.to(tl.int64) * T + n
        lse = tl.load(lse_at, mask=real, other=0.0)
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
