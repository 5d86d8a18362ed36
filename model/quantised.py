"""Decoders whose matrices are held in 8 or 4 bits: weights alone, rounded to nearest, no calibration.

    int8   weight[n, k] = scale[n] * code[n, k]                              codes -127..127, a scale an output
    int4   weight[n, k] = scale[n, g] * (code[n, k] - 8) + zero[n, g]        codes 0..15, g = k // group_size

Example of int4 with a group of 4: 0.11, 0.4, -0.2, 0.25 lie between -0.2 and 0.4, so scale = 0.6 / 15 = 0.04 and
zero = -0.2 + 8 * 0.04 = 0.12; 0.11 is 7.75 steps above the lowest. The codes 8, 15, 0, 11 stand for 0.12, 0.4, -0.2
and 0.24. Two codes share a byte, the first in its lower half. With groups of 64 and scales and zeros in
bf16 a weight costs 4.5 bits, 0.28 of bf16.

The embedding, which is the head as well where they are tied, and matrices that no group divides are int8; norms,
biases, routers and learned positions stay as they are. A product with few rows, which is decoding, reads the codes
themselves on CPUs, a quarter or an eighth of the bytes: one row by a kernel that is handed in (stages/int8_kernel.py),
a few through model/int8_product.py with inputs in 14 bits, int4 through torch's packed kernel with inputs in bf16.
More rows, and GPUs, dequantise the matrix first. `dynamic` rounds inputs to 7 bits as well, a row by itself, for any
number of rows. For looking up tokens the embedding is held in fp32.

Shapes: R rows, N outputs, K inputs, G groups, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.context import Context
from model.decoder import Decoder
from model.experts import Experts
from model.int8_product import AVAILABLE, Int8Product, in_one_digit
from model.latent import LatentAttention

FEW_ROWS = {8: 64, 4: 16}  # with more, a dequantised matrix is faster than the kernels of so many bits (AVX2)
LARGEST_INT8, LEVELS, MIDDLE = 127, 15, 8
SMALLEST = 1e-12  # a scale of zero would divide by zero where all weights are zero
GROUP_SIZES = (32, 64, 128)  # those of torch's kernel
KERNEL_OUTPUTS = 16  # torch's packed kernel wants a multiple; beyond another it reads on
OneRow = Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # x [K], codes [N, K], scale [N], dynamic -> [N]


class Packed(NamedTuple):
    """A matrix, or one for each expert: codes [.., N, K], int8; or of two a byte [.., N, K / 2], uint8."""

    codes: Tensor
    scale: Tensor  # fp32 [.., N]; of int4 bf16 [.., N, G]
    zero: Tensor | None = None  # of int4, bf16 [.., N, G]

    @property
    def bits(self) -> int:
        return 8 if self.zero is None else 4

    @property
    def n_bytes(self) -> int:
        return sum(part.nbytes for part in self if part is not None)

    def dequantised(self) -> Tensor:
        """The matrix that the codes stand for, fp32."""
        if self.zero is None:
            return self.codes * self.scale[..., None]
        groups = unpacked(self.codes).unflatten(-1, (self.scale.shape[-1], -1))
        return ((groups - MIDDLE) * self.scale.float()[..., None] + self.zero.float()[..., None]).flatten(-2)

    def of_expert(self, number: int) -> Packed:
        return Packed(*(None if part is None else part[number] for part in self))  # type: ignore[arg-type]


def int8(weight: Tensor) -> Packed:
    """Rounded to nearest, a scale for each output."""
    scale = weight.float().abs().amax(dim=-1).clamp(min=SMALLEST) / LARGEST_INT8
    return Packed((weight / scale[..., None]).round().to(torch.int8), scale)


def int4(weight: Tensor, group_size: int) -> Packed:
    """Rounded to nearest between the smallest and the largest weight of each group."""
    groups = weight.float().unflatten(-1, (-1, group_size))
    lowest, highest = groups.aminmax(dim=-1)
    scale = ((highest - lowest) / LEVELS).clamp(min=SMALLEST).bfloat16()
    zero = (lowest + MIDDLE * scale.float()).bfloat16()
    above = (groups - zero.float()[..., None]) / scale.float()[..., None] + MIDDLE
    codes = above.round().clamp(0, LEVELS).to(torch.uint8).flatten(-2)
    return Packed(codes[..., ::2] | codes[..., 1::2] << 4, scale, zero)


def unpacked(codes: Tensor) -> Tensor:
    """Codes 0..15, int32 [.., K], of two a byte."""
    return torch.stack((codes & LEVELS, codes >> 4), dim=-1).flatten(-2).int()


def best_group(shape: torch.Size, group_size: int) -> int:
    """The largest group up to `group_size` that divides the inputs, or 0: the matrix stays int8."""
    if shape[-2] % KERNEL_OUTPUTS:
        return 0
    return max((size for size in GROUP_SIZES if size <= group_size and shape[-1] % size == 0), default=0)


def quantise(weights: dict[str, Tensor], names: list[str], bits: int, group_size: int) -> dict[str, Packed]:
    """The named tensors of a `state_dict()` in 4 or 8 bits; the embedding and what no group divides always in 8."""
    packed = {}
    for name in names:
        group = 0 if bits == 8 or name == "embedding.weight" else best_group(weights[name].shape, group_size)
        packed[name] = int4(weights[name], group) if group else int8(weights[name])
    return packed


def matrices(model: Decoder) -> list[str]:
    """The tensors of its `state_dict()` that are quantised: embedding, linear layers, experts. Not the routers, and
    no subclass of nn.Linear, which may do something else with its weight."""
    names = ["embedding.weight"]
    for name, module in model.named_modules():
        if type(module) is nn.Linear and not name.endswith(".router"):
            names.append(f"{name}.weight")
        elif isinstance(module, Experts):
            names += [f"{name}.{part}" for part in ("gate", "up", "down")]
    return names


class PackedLinear(nn.Module):
    """x W^T + bias, W packed. `dynamic`: x is rounded as well; W is int8 then. one_row: a kernel for int8, or None."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None
    tiles: Tensor  # of int4, as is scale_and_zero
    scale_and_zero: Tensor

    def __init__(
        self, packed: Packed, bias: Tensor | None = None, dynamic: bool = False, one_row: OneRow | None = None
    ):
        super().__init__()
        for name, tensor in {**packed._asdict(), "bias": bias}.items():
            self.register_buffer(name, tensor)
        self.bits, self.dynamic, self.one_row = packed.bits, dynamic, one_row
        self.product: Int8Product | None = None
        if packed.zero is not None:  # as the kernel wants them
            self.register_buffer("tiles", torch._convert_weight_to_int4pack_for_cpu(unpacked(packed.codes).cpu(), 1))
            self.register_buffer("scale_and_zero", torch.stack((packed.scale.t(), packed.zero.t()), -1).contiguous())
        elif AVAILABLE:
            self.product = Int8Product(packed.codes.cpu(), packed.scale.cpu(), digits=1 if dynamic else 2)

    @property
    def weight(self) -> Tensor:
        return Packed(self.codes, self.scale, self.zero).dequantised()

    def forward(self, x: Tensor) -> Tensor:
        x_RK = x.flatten(0, -2)
        y_RN = self.multiplied(x_RK)
        y_RN = y_RN if self.bias is None else y_RN + self.bias
        return y_RN.to(x.dtype).unflatten(0, x.shape[:-1])

    def multiplied(self, x_RK: Tensor) -> Tensor:
        on_cpu, few = x_RK.device.type == "cpu", len(x_RK) <= FEW_ROWS[self.bits]
        if on_cpu and few and self.zero is not None:
            group = self.codes.shape[1] * 2 // self.scale.shape[1]
            x_RK = x_RK.bfloat16().contiguous()
            return torch._weight_int4pack_mm_for_cpu(x_RK, self.tiles, group, self.scale_and_zero).float()
        if on_cpu and self.one_row and len(x_RK) == 1 and self.zero is None:
            return self.one_row(x_RK[0].float().contiguous(), self.codes, self.scale, self.dynamic)[None]
        if on_cpu and self.product and (few or self.dynamic):
            return self.product(x_RK.float())
        return F.linear(in_one_digit(x_RK) if self.dynamic else x_RK, self.weight.to(x_RK.dtype))


class PackedExperts(nn.Module):
    """Experts (model/experts.py), each of three packed matrices. For inference; it has no losses."""

    def __init__(self, experts: Experts, gate: Packed, up: Packed, down: Packed, dynamic: bool, one_row: OneRow | None):
        super().__init__()
        self.router, self.shared, self.route, self.activation = (
            experts.router, experts.shared, experts.route, experts.activation,
        )  # fmt: skip
        self.gate, self.up, self.down = (
            nn.ModuleList(PackedLinear(part.of_expert(e), None, dynamic, one_row) for e in range(len(part.codes)))
            for part in (gate, up, down)
        )

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, None]:
        x_RC = x_BTC.flatten(0, 1)
        chosen_RE, weight_RE = self.route(self.router(x_RC))
        y_RC = torch.zeros_like(x_RC)
        for e in chosen_RE.unique().tolist():
            row, place = (chosen_RE == e).nonzero(as_tuple=True)
            inner = self.activation(self.gate[e](x_RC[row])) * self.up[e](x_RC[row])
            y_RC.index_add_(0, row, self.down[e](inner) * weight_RE[row, place, None])
        y_BTC = y_RC.view_as(x_BTC)
        return (y_BTC if self.shared is None else y_BTC + self.shared(x_BTC)), None


class PackedDecoder(Decoder):
    """A decoder with packed matrices, for inference.

    Args:
        packed: by the names of `matrices`. plain: the rest of `state_dict()`. dynamic: round inputs as well; all
            matrices are int8 then. one_row: the kernel for decoding one sequence.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, context_length: int, packed: dict[str, Packed],
        plain: dict[str, Tensor], dynamic: bool = False, one_row: OneRow | None = None,
    ):  # fmt: skip
        # What is packed is never held unpacked; a part of one's own may compute with values while it is made.
        with torch.device("cpu" if config.own_parts else "meta"):
            super().__init__(config, vocab_size, context_length)
        plain = {**plain, "embedding.weight": packed["embedding.weight"].dequantised()}
        for name, module in list(self.named_modules()):
            if isinstance(module, LatentAttention):  # it multiplies by this one from both sides while it decodes
                key = f"{name}.key_value_up.weight"
                plain[key] = packed[key].dequantised()
            elif isinstance(module, Experts):
                gate, up, down = (packed[f"{name}.{part}"] for part in ("gate", "up", "down"))
                self.set_submodule(name, PackedExperts(module, gate, up, down, dynamic, one_row))
        for name, module in list(self.named_modules()):
            if type(module) is nn.Linear and (key := f"{name}.weight") in packed and key not in plain:
                self.set_submodule(name, PackedLinear(packed[key], plain.get(f"{name}.bias"), dynamic, one_row))
        own = {key: tensor for key, tensor in plain.items() if key in self.state_dict()}
        self.load_state_dict(own, strict=False, assign=True)
        embedding = packed["embedding.weight"]
        self.packed_head = PackedLinear(embedding, None, dynamic, one_row) if self.head is None else self.head
        if left := [name for name, tensor in self.named_parameters() if tensor.is_meta]:
            raise ValueError(f"{left[0]} is missing")
        self.eval().requires_grad_(False)

    def head_product(self, hidden_BTC: Tensor) -> Tensor:
        return self.packed_head(hidden_BTC)
