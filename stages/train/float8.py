"""Linear layers that multiply in 8 bits, about twice as fast as bf16 on Hopper: `train.precision: fp8`.

Weights stay fp32. In each pass inputs and weights are scaled to E4M3 (largest number 448), gradients to E5M2
(57,344), multiplied with sums in fp32, and divided by their scales (Micikevicius et al., 2022):

    tensorwise   one scale for a tensor, from its largest number now
    rowwise      one for each row and each column of the product, exact where rows differ much, but slower

Example: [1, -4, 0.5] by one scale 448 / 4 = 112 is [112, -448, 56], held in a byte each without an error here.

Which layers gain was measured on one H200 (docs/train.md): those of blocks at least 1,024 wide. In narrower ones
making the bytes costs more than the product saves. Embedding and head never take part, nor routers and experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.decoder import Decoder
from stages.errors import BadInput

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
NARROWEST = 1024
TINY = 1e-12  # a tensor of zeros gets a finite scale


def convert_to_float8(model: Decoder, scaling: str, narrowest: int = NARROWEST) -> list[str]:
    """Has the linear layers of blocks multiply in 8 bits where that gains; returns their names.

    Raises:
        BadInput: no layer of this model is wide enough.
    """
    found = []
    for name, module in model.blocks.named_modules():
        if type(module) is nn.Linear and not name.endswith("router") and gains(module, narrowest):
            module.__class__ = Float8Linear
            module.scaling = scaling  # type: ignore[assignment]
            found.append(f"blocks.{name}")
    if not found:
        raise BadInput(
            f"params.yaml: train.precision is fp8, but no linear layer of this model is at least {narrowest} wide, "
            "where 8 bits begin to pay; set train.precision to bf16, or train.fp8_min_width lower"
        )
    return found


def gains(linear: nn.Linear, narrowest: int) -> bool:
    """Whether 8 bits pay. The kernels want widths that 16 divides."""
    sizes = (linear.in_features, linear.out_features)
    return min(sizes) >= narrowest and all(size % 16 == 0 for size in sizes)


def check_device(device: str) -> None:
    """Refuses hardware without 8-bit products.

    Raises:
        BadInput: no GPU, or one older than Ada and Hopper.
    """
    if not device.startswith("cuda"):
        raise BadInput("params.yaml: train.precision is fp8, which needs a GPU; set it to bf16 or fp32")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        raise BadInput(
            f"params.yaml: train.precision is fp8, which {torch.cuda.get_device_name(device)} cannot do (it needs "
            "compute capability 8.9 or more: Ada, Hopper, Blackwell); set it to bf16"
        )


class Float8Linear(nn.Linear):
    """y = x W^T in E4M3; the gradients of x and W by E5M2 times E4M3. Parameters and names are those of nn.Linear."""

    scaling: str

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() % 16:  # the gradient of the weights is a product over tokens
            return super().forward(x)
        product = _Tensorwise if self.scaling == "tensorwise" else _Rowwise
        y = product.apply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def cast(x: Tensor, dtype: torch.dtype, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """x in 8 bits and the factor that undoes its scale, fp32: one, or one along `dim`."""
    highest = x.abs().amax() if dim is None else x.abs().amax(dim=dim, keepdim=True)
    scale = torch.finfo(dtype).max / highest.float().clamp(min=TINY)
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype), scale.reciprocal()


def columns(x: Tensor) -> Tensor:
    """The same matrix laid out by columns, as the kernel wants its second factor."""
    return x.t().contiguous().t()


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)


class _Tensorwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_FC: Tensor) -> Tensor:
        dtype = torch.bfloat16
        x, x_scale = cast(x_NC.to(dtype), FORWARD)
        weight, weight_scale = cast(weight_FC.to(dtype), FORWARD)
        ctx.save_for_backward(x, x_scale, weight, weight_scale)
        ctx.dtypes = (x_NC.dtype, weight_FC.dtype)
        return product(x, x_scale, weight.t(), weight_scale, dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient_NF: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        gradient, scale = cast(gradient_NF, BACKWARD)
        dx = product(gradient, scale, columns(weight), weight_scale, torch.bfloat16, fast=False)
        dw = product(gradient.t().contiguous(), scale, columns(x), x_scale, torch.bfloat16, fast=False)
        return dx.to(x_dtype), dw.to(weight_dtype)


class _Rowwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_FC: Tensor) -> Tensor:
        dtype = torch.bfloat16
        x, x_scale = cast(x_NC.to(dtype), FORWARD, dim=1)
        weight, weight_scale = cast(weight_FC.to(dtype), FORWARD, dim=1)
        ctx.save_for_backward(x_NC, weight_FC)
        return product(x, x_scale, weight.t(), weight_scale.t(), dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient_NF: Tensor) -> tuple[Tensor, Tensor]:
        x_NC, weight_FC = ctx.saved_tensors
        dtype = torch.bfloat16
        gradient, scale = cast(gradient_NF, BACKWARD, dim=1)
        weight, weight_scale = cast(weight_FC.to(dtype), FORWARD, dim=0)
        dx = product(gradient, scale, columns(weight), weight_scale, dtype, fast=False)
        # Over tokens the gradient is scaled by its columns and x by its own.
        gradient_t, scale_t = cast(gradient_NF.t(), BACKWARD, dim=1)
        x, x_scale = cast(x_NC.to(dtype), FORWARD, dim=0)
        dw = product(gradient_t.contiguous(), scale_t, columns(x), x_scale, dtype, fast=False)
        return dx.to(x_NC.dtype), dw.to(weight_FC.dtype)
