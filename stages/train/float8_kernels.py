# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, assignment, operator, no-untyped-call"
"""The Triton kernels of float8_activation.py, each with the function that launches it.

    look_over   the largest size of a number of h, or of p'; a program takes some rows
    forward     h in 8 bits; a program takes a tile
    backward    p' in 8 bits as it lies and transposed, h transposed; a program takes a tile

A number that is none gets lost in 8 bits, but it made the scale one that is none either: `look_over` compares sizes as
whole numbers, in which NaN is above infinity and that above everything else.

Shapes: N tokens, F inner width, P that of p: 2F where it is gated.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.train.float8 import BACKWARD, FORWARD
from stages.train.float8_activation import GATED, width_of

# Rows, columns and warps, the fastest of some on an H200.
LOOK, FORWARD_TILE, BACKWARD_TILE = (2, 1024, 4), (2, 1024, 4), (32, 128, 4)


def look(p: Tensor, dh: Tensor | None, kind: str) -> Tensor:
    (N, P), (rows, columns, warps) = p.shape, LOOK
    bits = torch.zeros((), dtype=torch.int32, device=p.device)
    look_over[(-(-N // rows),)](
        p.contiguous(), p if dh is None else dh.contiguous(), bits, N, F=width_of(p, kind), P=P, KIND=kind,
        GATE=kind in GATED, BACK=dh is not None, ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return bits.view(torch.float32)


def activation(p: Tensor, scale: Tensor, kind: str) -> Tensor:
    (N, P), F, (rows, columns, warps) = p.shape, width_of(p, kind), FORWARD_TILE
    h = torch.empty(N, F, dtype=FORWARD, device=p.device)
    forward[(-(-N // rows), -(-F // columns))](
        p.contiguous(), scale, h, N, F=F, P=P, KIND=kind, GATE=kind in GATED, LARGEST=torch.finfo(FORWARD).max,
        ROWS=rows, COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    return h


def gradient(p: Tensor, dh: Tensor, scale: Tensor, h_scale: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    (N, P), F, (rows, columns, warps) = p.shape, width_of(p, kind), BACKWARD_TILE
    dp = torch.empty(N, P, dtype=BACKWARD, device=p.device)
    dp_t = torch.empty(P, N, dtype=BACKWARD, device=p.device)
    h_t = torch.empty(F, N, dtype=FORWARD, device=p.device)
    backward[(-(-N // rows), -(-F // columns))](
        p.contiguous(), dh.contiguous(), scale, h_scale, dp, dp_t, h_t, N, F=F, P=P, KIND=kind, GATE=kind in GATED,
        LARGEST=torch.finfo(BACKWARD).max, LARGEST_H=torch.finfo(FORWARD).max, ROWS=rows, COLUMNS=columns,
        num_warps=warps,
    )  # fmt: skip
    return dp, dp_t, h_t


@triton.jit
def parts(x, KIND: tl.constexpr):
    """The function of a gate, or of p itself, and its derivative."""
    if KIND == "swiglu":
        s = 1 / (1 + tl.exp(-x))
        f = x * s
        d = s * (1 + x * (1 - s))
    elif KIND == "geglu":
        s = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        f = x * s
        d = s + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif KIND == "relu2":
        s = tl.maximum(x, 0.0)
        f = s * s
        d = 2 * s
    else:  # gelu by tanh: (1 + tanh u) / 2 = sigmoid(2u)
        s = 1 / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
        f = x * s
        d = s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    return f, d


@triton.jit
def size(x):
    return tl.abs(x).to(tl.int32, bitcast=True)


@triton.jit
def bounded(x, LARGEST: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LARGEST), LARGEST)


@triton.jit
def across_bounded(x, LARGEST: tl.constexpr):
    """The same, for what is written transposed, so that it is rounded once more. Of numbers rounded once for both,
    ptxas 12.8 reads single bytes before they are there: every fourth row held what was in a register by chance."""
    return tl.trans(tl.maximum(tl.minimum(x, LARGEST), -LARGEST))


@triton.jit
def look_over(p_ptr, dh_ptr, highest_ptr, N, F: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr, GATE: tl.constexpr,
              BACK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    found = tl.zeros((ROWS, COLUMNS), tl.int32)
    for first in range(0, F, COLUMNS):
        c = first + tl.arange(0, COLUMNS)[None, :]
        inside = (n < N) & (c < F)
        f, d = parts(tl.load(p_ptr + n * P + c, mask=inside, other=0.0).to(tl.float32), KIND)
        if GATE:
            up = tl.load(p_ptr + n * P + F + c, mask=inside, other=0.0).to(tl.float32)
        if BACK:
            dh = tl.load(dh_ptr + n * F + c, mask=inside, other=0.0).to(tl.float32)
            if GATE:
                found = tl.maximum(found, size(dh * f))
                dh *= up
            found = tl.maximum(found, size(dh * d))
        else:
            if GATE:
                f *= up
            found = tl.maximum(found, size(f))
    tl.atomic_max(highest_ptr, tl.max(tl.max(found, 1), 0))


@triton.jit
def forward(p_ptr, scale_ptr, h_ptr, N, F: tl.constexpr, P: tl.constexpr, KIND: tl.constexpr, GATE: tl.constexpr,
            LARGEST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (n < N) & (c < F)
    f, _ = parts(tl.load(p_ptr + n * P + c, mask=inside, other=0.0).to(tl.float32), KIND)
    if GATE:
        f *= tl.load(p_ptr + n * P + F + c, mask=inside, other=0.0).to(tl.float32)
    h = bounded(f * tl.load(scale_ptr), LARGEST).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + n * F + c, h, mask=inside)


@triton.jit
def backward(p_ptr, dh_ptr, scale_ptr, h_scale_ptr, dp_ptr, dp_t_ptr, h_t_ptr, N, F: tl.constexpr, P: tl.constexpr,
             KIND: tl.constexpr, GATE: tl.constexpr, LARGEST: tl.constexpr, LARGEST_H: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    n, c = rows[:, None], columns[None, :]
    inside = (n < N) & (c < F)
    across, inside_t = columns[:, None] * N + rows[None, :], (columns < F)[:, None] & (rows < N)[None, :]
    f, d = parts(tl.load(p_ptr + n * P + c, mask=inside, other=0.0).to(tl.float32), KIND)
    dh = tl.load(dh_ptr + n * F + c, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(scale_ptr)
    KIND_OF_P: tl.constexpr = dp_ptr.dtype.element_ty
    if GATE:
        up = tl.load(p_ptr + n * P + F + c, mask=inside, other=0.0).to(tl.float32)
        d_up = dh * f * factor
        tl.store(dp_ptr + n * P + F + c, bounded(d_up, LARGEST).to(KIND_OF_P), mask=inside)
        place = dp_t_ptr + tl.full((), F, tl.int64) * N + across
        tl.store(place, across_bounded(d_up, LARGEST).to(KIND_OF_P), mask=inside_t)
        f *= up
        dh *= up
    dp = dh * d * factor
    tl.store(dp_ptr + n * P + c, bounded(dp, LARGEST).to(KIND_OF_P), mask=inside)
    tl.store(dp_t_ptr + across, across_bounded(dp, LARGEST).to(KIND_OF_P), mask=inside_t)
    h = across_bounded(f * tl.load(h_scale_ptr), LARGEST_H).to(h_t_ptr.dtype.element_ty)
    tl.store(h_t_ptr + across, h, mask=inside_t)
