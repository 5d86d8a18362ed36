"""Whether the kernels of 8-bit layers compute what they should with the compiler that is installed.

ptxas 12.8 made of one form of them a program that wrote every fourth row of a transposed tensor from a register that
held nothing yet. Gradients then are not finite or, worse, merely wrong. So each run tries them on a few rows before its
first step, with the widths that it will use, of which other programs are made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.decoder import Decoder
from stages.train.float8 import BACKWARD, FORWARD, eight_bits, scale_of, scaled_both
from stages.train.float8_activation import GATED, activation_by_torch, gradient_by_torch
from stages.train.float8_mlp import NAME_OF, Float8GatedMLP, Float8PlainMLP

ROWS = 256
MOST_APART = 0.01  # of the numbers, which may be rounded to a neighbour: exponentials are not torch's to the last bit


def broken_casts(device: str) -> str:
    """What `cast_both` does wrong, or the empty text."""
    x = _normal(device, 512)
    for dtype in (FORWARD, BACKWARD):
        y, y_t, _ = scaled_both(x, dtype)
        if _apart(y, eight_bits(x, scale_of(x.abs().amax(), dtype), dtype)) or _apart(y.t(), y_t):
            return f"numbers in {dtype} differ from torch's"
    return ""


def broken_mlps(model: Decoder, device: str) -> str:
    """What the kernels do wrong for one of the MLPs that take them, or the empty text."""
    tried = set()
    for module in model.blocks.modules():
        if isinstance(module, (Float8GatedMLP, Float8PlainMLP)):
            tried.add((NAME_OF[module.activation], module.down.in_features))
    for kind, width in sorted(tried):
        if broken := _broken(kind, width, device):
            return f"{broken} of {kind} {width} wide differs from torch's"
    return ""


def _broken(kind: str, width: int, device: str) -> str:
    ops = torch.ops.millrace
    p, dh = _normal(device, 2 * width if kind in GATED else width), _normal(device, width)
    h, dp = activation_by_torch(p, kind), gradient_by_torch(p, dh, kind)
    for name, found, expected in (
        ("the largest", ops.activation_highest(p, kind), h.abs().amax()),
        ("the largest gradient", ops.gradient_highest(p, dh, kind), dp.abs().amax()),
    ):
        if not bool((found - expected).abs() <= 1e-3 * expected):
            return name
    h_scale, scale = scale_of(h.abs().amax(), FORWARD), scale_of(dp.abs().amax(), BACKWARD)
    found_dp, found_dp_t, found_h_t = ops.gradient_cast(p, dh, scale, h_scale, kind)
    of_h, of_dp = eight_bits(h, h_scale, FORWARD), eight_bits(dp, scale, BACKWARD)
    for name, found, expected in (
        ("the activation", ops.activation_cast(p, h_scale, kind), of_h),
        ("the activation, transposed,", found_h_t.t(), of_h),
        ("the gradient", found_dp, of_dp),
    ):
        if _apart(found, expected) > MOST_APART:
            return name
    return "the gradient, transposed," if _apart(found_dp_t.t(), found_dp) else ""


def _normal(device: str, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, width, generator=generator).to(device, torch.bfloat16)


def _apart(found: Tensor, expected: Tensor) -> float:
    """The share of numbers that differ."""
    return float((found.float() != expected.float()).float().mean())
