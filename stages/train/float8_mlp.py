# mypy: disable-error-code="no-untyped-call"
"""MLPs that stay in 8 bits from one product to the next: what lies between is computed where it is cast.

    forward     p = x W1^T      h = f(p), in 8 bits at once      y = h W2^T
    backward    h' = y' W2      p' and h in 8 bits from p and h'      x' = p' W1, W1' = p'^T x, W2' = y'^T h

The matrices of a gated MLP are one, gate above up, with one scale; so are both gradients: x' is one product where it
was a sum of two. Only p is kept. Layer by layer (float8.py) h and p' are written in bf16, looked through and read
again: on an H200 27 of the 264 ms of a step at width 1,536, casts aside.

For `fp8_scaling: tensorwise` and MLPs without biases all of whose layers take 8 bits. Parameters and their names stay
those of model/mlp.py. Without gradients (validation) the layers compute one by one.

Shapes: N tokens, C hidden, F inner width; W1 [F, C], gated [2F, C]; W2 [C, F].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.decoder import Decoder
from model.mlp import ACTIVATIONS, GATES, GatedMLP, PlainMLP
from stages.train.float8 import BACKWARD, FORWARD, Float8Linear, product, scale_of, scaled, scaled_both
from stages.train.float8_activation import KINDS

NAME_OF = {function: name for name, function in {**ACTIVATIONS, **GATES}.items() if name in KINDS}
BF16 = torch.bfloat16


def join_mlps(model: Decoder) -> int:
    """Has the MLPs whose layers multiply in 8 bits stay in them; returns how many."""
    joined = 0
    for module in model.blocks.modules():
        if type(module) not in (GatedMLP, PlainMLP) or not all(map(_suits, module.children())):
            continue
        if module.activation in NAME_OF:
            module.in_parts = module.down.in_parts  # type: ignore[union-attr]
            module.__class__ = Float8GatedMLP if type(module) is GatedMLP else Float8PlainMLP
            joined += 1
    return joined


def part_mlps(model: Decoder) -> None:
    """Has them go layer by layer again."""
    for module in model.blocks.modules():
        if isinstance(module, Float8GatedMLP):
            module.__class__ = GatedMLP  # type: ignore[assignment]
        elif isinstance(module, Float8PlainMLP):
            module.__class__ = PlainMLP  # type: ignore[assignment]


def _suits(linear: Any) -> bool:
    return type(linear) is Float8Linear and linear.bias is None and linear.scaling == "tensorwise"


class Float8GatedMLP(GatedMLP):
    in_parts: bool

    def forward(self, x: Tensor) -> Tensor:
        if not _applies(x):
            return super().forward(x)
        return _apply(x, self.down.weight, NAME_OF[self.activation], self.in_parts, self.gate.weight, self.up.weight)


class Float8PlainMLP(PlainMLP):
    in_parts: bool

    def forward(self, x: Tensor) -> Tensor:
        if not _applies(x):
            return super().forward(x)
        return _apply(x, self.down.weight, NAME_OF[self.activation], self.in_parts, self.up.weight)


def _applies(x: Tensor) -> bool:
    """In training; and the gradient of the weights is a product over tokens, which 16 must divide."""
    return torch.is_grad_enabled() and x.shape[:-1].numel() % 16 == 0


def _apply(x: Tensor, second_CF: Tensor, kind: str, in_parts: bool, *first: Tensor) -> Tensor:
    return _Float8MLP.apply(x.flatten(0, -2), second_CF, kind, in_parts, *first).unflatten(0, x.shape[:-1])


def _joined(first: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([weight.to(BF16) for weight in first]) if len(first) > 1 else first[0].to(BF16)


class _Float8MLP(torch.autograd.Function):
    """In parts the weights themselves are kept, as in float8.py."""

    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, second_CF: Tensor, kind: str, in_parts: bool, *first: Tensor
    ) -> Tensor:  # fmt: skip
        x, x_t, x_scale = scaled_both(x_NC.to(BF16), FORWARD)
        if in_parts:
            (one, one_scale), (two, two_scale) = scaled(_joined(first), FORWARD), scaled(second_CF.to(BF16), FORWARD)
            kept: tuple[Tensor, ...] = (second_CF, *first)
        else:
            one, one_t, one_scale = scaled_both(_joined(first), FORWARD)
            two, two_t, two_scale = scaled_both(second_CF.to(BF16), FORWARD)
            kept = (one_t, one_scale, two_t, two_scale)
        p = product(x, x_scale, one.t(), one_scale, BF16, fast=True)
        h_scale = scale_of(torch.ops.millrace.activation_highest(p, kind), FORWARD)
        h = torch.ops.millrace.activation_cast(p, h_scale, kind)
        ctx.save_for_backward(x_t, x_scale, p, h_scale, *kept)
        ctx.kind, ctx.in_parts = kind, in_parts
        ctx.dtypes, ctx.rows = (x_NC.dtype, second_CF.dtype), [len(weight) for weight in first]
        return product(h, h_scale.reciprocal(), two.t(), two_scale, BF16, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_t, x_scale, p, h_scale, *kept = ctx.saved_tensors
        if ctx.in_parts:
            second_CF, *first = kept
            _, one_t, one_scale = scaled_both(_joined(tuple(first)), FORWARD)
            _, two_t, two_scale = scaled_both(second_CF.to(BF16), FORWARD)
        else:
            one_t, one_scale, two_t, two_scale = kept
        x_dtype, weight_dtype = ctx.dtypes
        dy, dy_t, dy_scale = scaled_both(gradients[0], BACKWARD)
        dh = product(dy, dy_scale, two_t.t(), two_scale, BF16, fast=False)
        scale = scale_of(torch.ops.millrace.gradient_highest(p, dh, ctx.kind), BACKWARD)
        dp, dp_t, h_t = torch.ops.millrace.gradient_cast(p, dh, scale, h_scale, ctx.kind)
        d_second = product(dy_t, dy_scale, h_t.t(), h_scale.reciprocal(), BF16, fast=False)
        dx = product(dp, scale.reciprocal(), one_t.t(), one_scale, BF16, fast=False)
        d_first = product(dp_t, scale.reciprocal(), x_t.t(), x_scale, BF16, fast=False)
        of_first = (part.to(weight_dtype) for part in d_first.split(ctx.rows))
        return dx.to(x_dtype), d_second.to(weight_dtype), None, None, *of_first
