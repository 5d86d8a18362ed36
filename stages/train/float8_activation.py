"""The activation of an MLP from its products to 8 bits, and back: stages/train/float8_mlp.py says between which.

One scale for a tensor asks for its largest number before any is written. To write h in bf16, look for it, and read h
again to cast it moves more bytes than to compute h twice from the products p: once for the largest, once for the
bytes. Backward, h is made a third time beside the gradient of p, so that nothing of it waits in between, and all that
is needed transposed is written so at once.

    p      [N, 2F] gate beside up, or [N, F]
    h      silu(gate) * up, gelu(gate) * up; gelu(p), relu(p)^2
    p'     from h' and p, of the width of p

On an H200, 32,768 tokens, F 4,096: docs/train.md.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.train.float8 import BACKWARD, FORWARD, eight_bits

GATED = ("swiglu", "geglu")
KINDS = (*GATED, "gelu", "relu2")


def _kernels() -> ModuleType:
    """They import triton, which is not everywhere."""
    return importlib.import_module("stages.train.float8_kernels")


def width_of(p: Tensor, kind: str) -> int:
    return p.shape[1] // 2 if kind in GATED else p.shape[1]


def activation_by_torch(p: Tensor, kind: str) -> Tensor:
    """h in fp32, [N, F]."""
    if kind in GATED:
        gate, up = p.float().chunk(2, dim=1)
        return (F.silu(gate) if kind == "swiglu" else F.gelu(gate)) * up
    return F.relu(p.float()).square() if kind == "relu2" else F.gelu(p.float(), approximate="tanh")


def gradient_by_torch(p: Tensor, dh: Tensor, kind: str) -> Tensor:
    """p' in fp32."""
    p, dh = p.float(), dh.float()
    if kind == "swiglu":
        gate, up = p.chunk(2, dim=1)
        return torch.cat((torch.ops.aten.silu_backward(dh * up, gate), dh * F.silu(gate)), dim=1)
    if kind == "geglu":
        gate, up = p.chunk(2, dim=1)
        return torch.cat((torch.ops.aten.gelu_backward(dh * up, gate), dh * F.gelu(gate)), dim=1)
    if kind == "relu2":
        return dh * 2 * F.relu(p)
    return torch.ops.aten.gelu_backward(dh, p, approximate="tanh")


@torch.library.custom_op("millrace::activation_highest", mutates_args=())
def activation_highest(p: Tensor, kind: str) -> Tensor:
    """The largest size of a number of h, fp32 []."""
    if not p.is_cuda:
        return activation_by_torch(p, kind).abs().amax()
    return _kernels().look(p, None, kind)


@torch.library.custom_op("millrace::gradient_highest", mutates_args=())
def gradient_highest(p: Tensor, dh: Tensor, kind: str) -> Tensor:
    """The largest size of a number of p', fp32 []."""
    if not p.is_cuda:
        return gradient_by_torch(p, dh, kind).abs().amax()
    return _kernels().look(p, dh, kind)


@torch.library.custom_op("millrace::activation_cast", mutates_args=())
def activation_cast(p: Tensor, scale: Tensor, kind: str) -> Tensor:
    """h * scale in 8 bits, [N, F]."""
    if not p.is_cuda:
        return eight_bits(activation_by_torch(p, kind), scale, FORWARD)
    return _kernels().activation(p, scale, kind)


@torch.library.custom_op("millrace::gradient_cast", mutates_args=())
def gradient_cast(
    p: Tensor, dh: Tensor, scale: Tensor, h_scale: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """p' * scale in 8 bits as it lies and transposed, and h * h_scale transposed, [F, N]."""
    if not p.is_cuda:
        dp = eight_bits(gradient_by_torch(p, dh, kind), scale, BACKWARD)
        return dp, dp.t().contiguous(), eight_bits(activation_by_torch(p, kind), h_scale, FORWARD).t().contiguous()
    return _kernels().gradient(p, dh, scale, h_scale, kind)


@activation_highest.register_fake
def _(p: Tensor, kind: str) -> Tensor:
    return p.new_empty((), dtype=torch.float32)


@gradient_highest.register_fake
def _(p: Tensor, dh: Tensor, kind: str) -> Tensor:
    return p.new_empty((), dtype=torch.float32)


@activation_cast.register_fake
def _(p: Tensor, scale: Tensor, kind: str) -> Tensor:
    return p.new_empty((p.shape[0], width_of(p, kind)), dtype=FORWARD)


@gradient_cast.register_fake
def _(p: Tensor, dh: Tensor, scale: Tensor, h_scale: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    N, P = p.shape
    return (
        p.new_empty((N, P), dtype=BACKWARD),
        p.new_empty((P, N), dtype=BACKWARD),
        p.new_empty((width_of(p, kind), N), dtype=FORWARD),
    )
