# mypy: disable-error-code="name-defined, no-untyped-def"
"""Linear layers that multiply in 8 bits, about twice as fast as bf16 on Hopper: `train.precision: fp8`.

Weights stay fp32. In each pass inputs and weights are scaled to E4M3 (largest number 448), gradients to E5M2
(57,344), multiplied with sums in fp32, and divided by their scales (Micikevicius et al., 2022):

    tensorwise   one scale for a tensor, from its largest number now
    rowwise      one for each row and each column of the product, exact where rows differ much, but slower

Example: [1, -4, 0.5] by one scale 448 / 4 = 112 is [112, -448, 56], held in a byte each without an error here.

The 8-bit kernels want the numbers that they sum over side by side, in both factors. y = x W^T sums over C, the
gradient of W over tokens: so every tensor is needed as it lies and transposed, and both are written by one kernel
that reads it once (`cast_both`).

Which layers gain was measured on one H200 (docs/train.md): those of blocks at least 1,024 wide. In narrower ones
making the bytes costs more than the product saves. Embedding and head never take part, nor routers and experts.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from model.decoder import Decoder
from stages.errors import BadInput

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
NARROWEST = 1024
TINY = 1e-12  # a tensor of zeros gets a finite scale
TILE_N, TILE_C = 64, 64  # of `cast_both`


def convert_to_float8(
    model: Decoder, scaling: str, narrowest: int = NARROWEST, in_parts: bool = False
) -> list[str]:  # fmt: skip
    """Has the linear layers of blocks multiply in 8 bits where that gains; returns their names.

    Args:
        in_parts: weights will be gathered for each pass (sharding.py), so nothing of them is to be kept between.

    Raises:
        BadInput: no layer of this model is wide enough.
    """
    found = []
    for name, module in model.blocks.named_modules():
        if type(module) is nn.Linear and not name.endswith("router") and gains(module, narrowest):
            module.__class__ = Float8Linear
            module.scaling, module.in_parts = scaling, in_parts  # type: ignore[assignment]
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
    in_parts: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() % 16:  # the gradient of the weights is a product over tokens
            return super().forward(x)
        x_NC = x.flatten(0, -2)
        if self.scaling == "rowwise":
            y_NF = _Rowwise.apply(x_NC, self.weight)
        elif torch.is_grad_enabled():
            y_NF = _Tensorwise.apply(x_NC, self.weight, self.in_parts)
        else:  # nobody will read what lies transposed
            y_NF = tensorwise(x_NC, self.weight)
        y = y_NF.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def scale_of(highest: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.finfo(dtype).max / highest.float().clamp(min=TINY)


def eight_bits(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype)


def cast(x: Tensor, dtype: torch.dtype, dim: int) -> tuple[Tensor, Tensor]:
    """x in 8 bits and the factors along `dim` that undo its scales, fp32."""
    scale = scale_of(x.abs().amax(dim=dim, keepdim=True), dtype)
    return eight_bits(x, scale, dtype), scale.reciprocal()


def columns(x: Tensor) -> Tensor:
    """The same matrix laid out by columns, as the kernel wants its second factor."""
    return x.t().contiguous().t()


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)


def tensorwise(x_NC: Tensor, weight_FC: Tensor) -> Tensor:
    """x W^T, and nothing for a backward pass. The bits are those of `_Tensorwise`, unless a compiler that joins the
    cast to what comes before it leaves out the rounding to bf16."""
    x, x_scale = scaled(x_NC.to(torch.bfloat16), FORWARD)
    weight, weight_scale = scaled(weight_FC.to(torch.bfloat16), FORWARD)
    return product(x, x_scale, weight.t(), weight_scale, torch.bfloat16, fast=True)


class _Tensorwise(torch.autograd.Function):
    """In parts the weight itself is kept, which FSDP frees and gathers again, and cast once more in the backward pass:
    8 bits of it would wait on every rank, in whole."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_FC: Tensor, in_parts: bool) -> Tensor:
        dtype = torch.bfloat16
        x, x_t, x_scale = scaled_both(x_NC.to(dtype), FORWARD)
        if in_parts:
            weight, weight_scale = scaled(weight_FC.to(dtype), FORWARD)
            ctx.save_for_backward(x_t, x_scale, weight_FC)
        else:
            weight, weight_t, weight_scale = scaled_both(weight_FC.to(dtype), FORWARD)
            ctx.save_for_backward(x_t, x_scale, weight_t, weight_scale)
        ctx.dtypes, ctx.in_parts = (x_NC.dtype, weight_FC.dtype), in_parts
        return product(x, x_scale, weight.t(), weight_scale, dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient_NF: Tensor) -> tuple[Tensor, Tensor, None]:
        x_t, x_scale, *kept = ctx.saved_tensors
        if ctx.in_parts:
            _, weight_t, weight_scale = scaled_both(kept[0].to(torch.bfloat16), FORWARD)
        else:
            weight_t, weight_scale = kept
        x_dtype, weight_dtype = ctx.dtypes
        gradient, gradient_t, scale = scaled_both(gradient_NF, BACKWARD)
        dx = product(gradient, scale, weight_t.t(), weight_scale, torch.bfloat16, fast=False)
        dw = product(gradient_t, scale, x_t.t(), x_scale, torch.bfloat16, fast=False)
        return dx.to(x_dtype), dw.to(weight_dtype), None


def scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in 8 bits, and the factor that undoes its one scale."""
    scale = scale_of(x.abs().amax(), dtype)
    return eight_bits(x, scale, dtype), scale.reciprocal()


def scaled_both(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and x in 8 bits transposed between the two."""
    scale = scale_of(x.abs().amax(), dtype)
    y, y_t = torch.ops.millrace.cast_both(x, scale, dtype)
    return y, y_t, scale.reciprocal()


@torch.library.custom_op("millrace::cast_both", mutates_args=())
def cast_both(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x * scale in 8 bits, [N, C] and [C, N]."""
    if not x.is_cuda:
        y = eight_bits(x, scale, dtype)
        return y, y.t().contiguous()
    (N, C), x = x.shape, x.contiguous()
    y = torch.empty(N, C, dtype=dtype, device=x.device)
    y_t = torch.empty(C, N, dtype=dtype, device=x.device)
    grid = (-(-N // TILE_N), -(-C // TILE_C))
    _kernel()[grid](x, scale, y, y_t, N, C, LARGEST=torch.finfo(dtype).max, TILE_N=TILE_N, TILE_C=TILE_C, num_warps=4)
    return y, y_t


@cast_both.register_fake
def _(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    N, C = x.shape
    return torch.empty(N, C, dtype=dtype, device=x.device), torch.empty(C, N, dtype=dtype, device=x.device)


@functools.cache
def _kernel() -> Any:
    """One program a tile."""
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

    @triton.jit
    def cast_tile(
        x, scale, y, y_t, N, C, LARGEST: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr
    ):  # fmt: skip
        n = tl.program_id(0).to(tl.int64) * TILE_N + tl.arange(0, TILE_N)
        c = tl.program_id(1).to(tl.int64) * TILE_C + tl.arange(0, TILE_C)
        inside = (n < N)[:, None] & (c < C)[None, :]
        value = tl.load(x + n[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32) * tl.load(scale)
        # A number that is none gets lost in these bits, but it made the scale one that is none either.
        bits = tl.minimum(tl.maximum(value, -LARGEST), LARGEST).to(y.dtype.element_ty)
        tl.store(y + n[:, None] * C + c[None, :], bits, mask=inside)
        tl.store(y_t + c[:, None] * N + n[None, :], tl.trans(bits), mask=tl.trans(inside))

    return cast_tile


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
