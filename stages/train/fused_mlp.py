# mypy: disable-error-code="no-untyped-call"
"""MLPs whose activation is computed where the product before it ends (quack's kernels; fused.py says when).

    forward     p = x W1^T and h = f(p)      one kernel; then y = h W2^T
    backward    p' = f'(p) * (y' W2), and h again    one kernel; then x' = p' W1, W1' = p'^T x, W2' = y'^T h

h is not kept: the backward kernel makes it from p, which it reads anyway. Gated MLPs have gate and up in one product,
row by row in turn, so that both numbers of a pair lie side by side:

    W1 = gate_0, up_0, gate_1, up_1, ..      h_i = silu(p_2i) * p_2i+1

Example: gate rows [1, 0], [0, 1] and up rows [2, 0], [0, 2] make W1 = [1, 0], [2, 0], [0, 1], [0, 2].

Parameters and their names stay those of model/mlp.py. Without gradients (validation) the plain kernels compute.
Shapes: N tokens, C hidden, F inner width; W1 [F, C], gated [2F, C]; W2 [C, F].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.decoder import Decoder
from model.mlp import ACTIVATIONS, GATES, GatedMLP, PlainMLP

BF16 = torch.bfloat16
# By the function that a module holds. quack's GEGLU takes the tanh of GELU, ours the exact one: it is no part of this.
PLAIN = {ACTIVATIONS["gelu"]: "gelu_tanh_approx", ACTIVATIONS["relu2"]: "relu_sq"}
GATED = {GATES["swiglu"]: "swiglu"}
MULTIPLE = 32  # of both widths, as the kernels load them
# Rows and columns of a tile, the fastest of six on an H200 at widths 768 to 1,536, in pairs of blocks.
FORWARD_TILE, BACKWARD_TILE, GATED_BACKWARD_TILE = (128, 192), (128, 192), (128, 160)


def fuse_mlps(model: Decoder) -> int:
    """Has the MLPs of the blocks take fused kernels where there are any for them; returns how many."""
    fused = 0
    for block in model.blocks:
        mlp = block.mlp
        if isinstance(mlp, (PlainMLP, GatedMLP)) and _suits(mlp):
            gated = type(mlp) is GatedMLP
            mlp.kernel = GATED[mlp.activation] if gated else PLAIN[mlp.activation]  # type: ignore[assignment]
            mlp.__class__ = FusedGatedMLP if gated else FusedPlainMLP
            fused += 1
    return fused


def _suits(mlp: PlainMLP | GatedMLP) -> bool:
    """Whether it is one of ours as it was made: with plain linear layers, not of 8 bits, and a known activation."""
    known = {PlainMLP: PLAIN, GatedMLP: GATED}.get(type(mlp), {})
    linears = list(mlp.children())
    plain = all(type(linear) is torch.nn.Linear and linear.bias is None for linear in linears)
    return plain and mlp.activation in known and all(n % MULTIPLE == 0 for n in mlp.down.weight.shape)


class FusedPlainMLP(PlainMLP):
    kernel: str  # quack's name of the activation

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return _apply(x, self.up.weight.to(BF16), self.down.weight.to(BF16), self.kernel)


class FusedGatedMLP(GatedMLP):
    kernel: str

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        first = torch.stack((self.gate.weight.to(BF16), self.up.weight.to(BF16)), dim=1).flatten(0, 1)
        return _apply(x, first, self.down.weight.to(BF16), self.kernel)


def _apply(x: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    y_NC = _FusedMLP.apply(x.flatten(0, -2).to(BF16), first, second, activation)
    return y_NC.unflatten(0, x.shape[:-1])


class _FusedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, first: Tensor, second_CF: Tensor, activation: str) -> Tensor:
        product, h_NF = torch.ops.millrace.linear_act(x_NC, first, activation)
        ctx.save_for_backward(x_NC, first, second_CF, product)
        ctx.activation = activation
        return h_NF @ second_CF.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, first, second_CF, product = ctx.saved_tensors
        dy_NC = gradients[0].contiguous()
        d_product, h_NF = torch.ops.millrace.linear_act_backward(dy_NC, second_CF, product, ctx.activation)
        return d_product @ first, d_product.t() @ x_NC, dy_NC.t() @ h_NF, None


def _tile(size: tuple[int, int]) -> Any:
    from quack.gemm_config import GemmConfig

    return GemmConfig(
        tile_m=size[0], tile_n=size[1], pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False,
        device_capacity=9,
    )  # fmt: skip


@torch.library.custom_op("millrace::linear_act", mutates_args=())
def linear_act(x_NC: Tensor, first: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """x W1^T, and its activation."""
    from quack.gemm_interface import gemm_act

    product, h_NF = gemm_act(x_NC, first.t(), activation=activation, config=_tile(FORWARD_TILE))
    return product, h_NF


@linear_act.register_fake
def _(x_NC: Tensor, first: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    N, width = x_NC.shape[0], first.shape[0]
    return x_NC.new_empty(N, width), x_NC.new_empty(N, width // 2 if activation in GATED.values() else width)


@torch.library.custom_op("millrace::linear_act_backward", mutates_args=())
def linear_act_backward(
    dy_NC: Tensor, second_CF: Tensor, product: Tensor, activation: str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of `product`, and the activation once more, [N, F]."""
    from quack.gemm_interface import gemm_dact

    tile = _tile(GATED_BACKWARD_TILE if activation in GATED.values() else BACKWARD_TILE)
    d_product, h_NF = gemm_dact(
        dy_NC, second_CF, product, activation=activation, config=tile, dynamic_scheduler=False
    )  # fmt: skip
    return d_product, h_NF


@linear_act_backward.register_fake
def _(dy_NC: Tensor, second_CF: Tensor, product: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(product), dy_NC.new_empty(product.shape[0], second_CF.shape[1])
