# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, assignment, operator"
# mypy: disable-error-code="var-annotated"
"""The Triton kernels of serving/alone.py: one token of one sequence, where weights are all that has to be read.

    embed      a row of the embedding
    product    W x onto the residual, or W norm(x)
    gated      silu(G norm(x)) * (U norm(x))
    attention  norms of heads, rotation, writing into the cache, softmax over what was written before

Norms are taken by every program anew: inputs are few. And a kernel begins while the one before still runs
(`EARLY`: programmatic dependent launch): a program loads all of its weights, which wait for nobody, and then waits for
its input. Keys and values of earlier tokens were written by earlier steps: they are loaded before the wait too. Every
kernel waits, so what is written is not written while a kernel before the last still reads.

A matrix of 2,048 inputs: a program takes 4 rows of it, 16 KB in the registers of 128 threads; each thread multiplies 16
inputs by 16 numbers of every row, and the threads' sums are added at the end, in an order that is always the same.

Numbers are rounded where serving/wide.py rounds them, in inputs of products and in caches.

Shapes: N outputs, K inputs, H query heads, D width of a head.
"""

import triton
import triton.language as tl


@triton.jit
def columns(row, k, STEP: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """Columns STEP * WIDTH and on, zeros behind the last."""
    at = STEP * WIDTH + k
    if (STEP + 1) * WIDTH <= K:
        found = tl.load(row + at)
    else:
        found = tl.load(row + at, mask=at < K, other=0.0)
    return found


@triton.jit
def embed(token_ptr, table_ptr, x_ptr, K: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    row = table_ptr + tl.load(token_ptr) * K
    tl.store(x_ptr + k, tl.load(row + k, mask=k < K, other=0.0).to(tl.float32), mask=k < K)


@triton.jit
def product(x_ptr, gain_ptr, w_ptr, residual_ptr, y_ptr, eps, N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr,
            RESIDUAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """y = W x + residual, or W (x / rms(x) * gain)"""
    STEPS: tl.constexpr = (K + WIDTH - 1) // WIDTH
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    n, k = program * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)[None, :]
    row = w_ptr + n[:, None].to(tl.int64) * K
    kind = w_ptr.dtype.element_ty
    weights, gains = (), ()
    for step in tl.static_range(STEPS):
        weights = weights + (columns(row, k, step, K, WIDTH),)
        if NORM:
            gains = gains + (columns(gain_ptr, k, step, K, WIDTH),)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if RESIDUAL:
        residual = tl.load(residual_ptr + n)
    xs, squares = (), tl.zeros((1, WIDTH), tl.float32)
    for step in tl.static_range(STEPS):
        xs = xs + (columns(x_ptr, k, step, K, WIDTH).to(tl.float32),)
        squares += xs[step] * xs[step]
    factor = tl.rsqrt(tl.sum(squares) / K + eps)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in tl.static_range(STEPS):
        x = xs[step]
        if NORM:
            x = (x * factor * gains[step].to(tl.float32)).to(kind).to(tl.float32)
        total += weights[step].to(tl.float32) * x
    y = tl.sum(total, axis=1)
    if RESIDUAL:
        y += residual
    tl.store(y_ptr + n, y)


@triton.jit
def gated(x_ptr, gain_ptr, w_ptr, y_ptr, eps, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
          WIDTH: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """y = silu(G z) * (U z) with z = x / rms(x) * gain; w is G, and U below it"""
    STEPS: tl.constexpr = (K + WIDTH - 1) // WIDTH
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    n, k = program * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)[None, :]
    gate = w_ptr + n[:, None].to(tl.int64) * K
    up = gate + N * K
    kind = w_ptr.dtype.element_ty
    gate_weights, up_weights, gains = (), (), ()
    for step in tl.static_range(STEPS):
        gate_weights = gate_weights + (columns(gate, k, step, K, WIDTH),)
        up_weights = up_weights + (columns(up, k, step, K, WIDTH),)
        gains = gains + (columns(gain_ptr, k, step, K, WIDTH),)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    xs, squares = (), tl.zeros((1, WIDTH), tl.float32)
    for step in tl.static_range(STEPS):
        xs = xs + (columns(x_ptr, k, step, K, WIDTH),)
        squares += xs[step] * xs[step]
    factor = tl.rsqrt(tl.sum(squares) / K + eps)
    gates, ups = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    for step in tl.static_range(STEPS):
        x = (xs[step] * factor * gains[step].to(tl.float32)).to(kind).to(tl.float32)
        gates += gate_weights[step].to(tl.float32) * x
        ups += up_weights[step].to(tl.float32) * x
    opened = tl.sum(gates, axis=1)
    y = opened / (1 + tl.exp(-opened)) * tl.sum(ups, axis=1)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty))


@triton.jit
def turned(x, partner, gain, partner_gain, cosine, sine, eps, D: tl.constexpr, NORM: tl.constexpr):
    """A head normed and rotated. Channels i and i + D/2 are a pair: `partner` has them swapped, the first negated."""
    if NORM:
        factor = tl.rsqrt(tl.sum(x * x) / D + eps)
        x *= factor * gain.to(tl.float32)
        partner *= factor * partner_gain.to(tl.float32)
    return x * cosine + partner * sine


@triton.jit
def merge(y, most, total, parts_ptr, sums_ptr, arrived_ptr, y_ptr, head, split, used, d, D: tl.constexpr,
          SPLITS: tl.constexpr):  # fmt: skip
    """Leaves a part of a head, not yet divided by its total; the last of `used` parts puts them together, in their
    order."""
    part = head * SPLITS + split
    tl.store(parts_ptr + part * D + d, y)
    tl.store(sums_ptr + part * 2, most)
    tl.store(sums_ptr + part * 2 + 1, total)
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr + head, 1, sem="acq_rel") == used - 1:
        p = tl.arange(0, SPLITS)[:, None]
        real, at = p < used, head * SPLITS + p
        mosts = tl.load(sums_ptr + at * 2, mask=real, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(sums_ptr + at * 2 + 1, mask=real, other=0.0, cache_modifier=".cg")
        ys = tl.load(parts_ptr + at * D + d, mask=real, other=0.0, cache_modifier=".cg")
        share = tl.exp(mosts - tl.max(mosts))
        merged = tl.sum(ys * share, axis=0, keep_dims=True) / tl.sum(totals * share)
        tl.store(y_ptr + head * D + d, merged.to(y_ptr.dtype.element_ty))
        tl.store(arrived_ptr + head, 0)


@triton.jit
def attention(qkv_ptr, query_gain_ptr, key_gain_ptr, cosine_ptr, sine_ptr, keys_ptr, values_ptr, position_ptr,
              parts_ptr, sums_ptr, arrived_ptr, y_ptr, row_stride, eps, scale, H: tl.constexpr, GROUP: tl.constexpr,
              D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, NORM: tl.constexpr,
              EARLY: tl.constexpr):  # fmt: skip
    """A program for each query head and part of the tokens before, in blocks. The first part sees the new token too,
    and writes it."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    head, split = tl.program_id(0), tl.program_id(1)
    position = tl.load(position_ptr).to(tl.int32)
    blocks = (position + BLOCK - 1) // BLOCK
    each = tl.maximum((blocks + SPLITS - 1) // SPLITS, 1)
    used = tl.maximum((blocks + each - 1) // each, 1)
    if split >= used:
        return
    begin, end = split * each * BLOCK, tl.minimum((split + 1) * each * BLOCK, position)
    d, s, key_head = tl.arange(0, D)[None, :], tl.arange(0, BLOCK)[:, None], head // GROUP
    other, sign = (d + D // 2) % D, tl.where(d < D // 2, -1.0, 1.0)
    keys, values = keys_ptr + key_head * row_stride, values_ptr + key_head * row_stride
    k = tl.load(keys + (begin + s) * D + d, mask=begin + s < end, other=0.0)
    v = tl.load(values + (begin + s) * D + d, mask=begin + s < end, other=0.0)
    cosine, sine = tl.load(cosine_ptr + position * D + d), tl.load(sine_ptr + position * D + d)
    if NORM:
        gain, partner_gain = tl.load(query_gain_ptr + d), tl.load(query_gain_ptr + other)
        key_gain, key_partner_gain = tl.load(key_gain_ptr + d), tl.load(key_gain_ptr + other)
    else:
        gain, partner_gain, key_gain, key_partner_gain = cosine, cosine, cosine, cosine
    if EARLY:
        tl.extra.cuda.gdc_wait()
    kind = keys_ptr.dtype.element_ty
    query, new_key = qkv_ptr + head * D, qkv_ptr + (H + key_head) * D
    q, q_partner = tl.load(query + d), tl.load(query + other) * sign
    own_key, own_partner = tl.load(new_key + d), tl.load(new_key + other) * sign
    own_value = tl.load(new_key + (H // GROUP) * D + d).to(kind)
    q = turned(q, q_partner, gain, partner_gain, cosine, sine, eps, D, NORM).to(kind).to(tl.float32) * scale
    own_key = turned(own_key, own_partner, key_gain, key_partner_gain, cosine, sine, eps, D, NORM).to(kind)
    if (split == 0) & (head % GROUP == 0):
        tl.store(keys + position * D + d, own_key)
        tl.store(values + position * D + d, own_value)
    own = tl.where(split == 0, 1.0, 0.0)
    most = tl.where(split == 0, tl.sum(q * own_key.to(tl.float32)), float("-inf"))
    total, y = own, own_value.to(tl.float32) * own
    for start in range(begin, end, BLOCK):
        scores = tl.sum(k.to(tl.float32) * q, axis=1, keep_dims=True)
        scores = tl.where(start + s < end, scores, float("-inf"))
        highest = tl.maximum(most, tl.max(scores))
        weight, kept = tl.exp(scores - highest), tl.exp(most - highest)
        total = total * kept + tl.sum(weight)
        y = y * kept + tl.sum(v.to(tl.float32) * weight, axis=0, keep_dims=True)
        most = highest
        slot = start + BLOCK + s
        k = tl.load(keys + slot * D + d, mask=slot < end, other=0.0)
        v = tl.load(values + slot * D + d, mask=slot < end, other=0.0)
    if used == 1:
        tl.store(y_ptr + head * D + d, (y / total).to(kind))
    else:
        merge(y, most, total, parts_ptr, sums_ptr, arrived_ptr, y_ptr, head, split, used, d, D, SPLITS)
