"""Decoders in bf16 whose numbers between matrices are fp32: sums of products, norms, rotations, the residual stream.

A product of bf16 numbers is summed up in fp32 anyway; what rounds is writing the sum down. Rounded everywhere, the
logits of 1.01B random weights are 0.023 of the largest away from those of the same weights in fp32, and as far from
those that another number of rows gives, since its sums are in another order. Here weights, the inputs of products and
caches alone are bf16. Serving asks for it: a few rows are nothing beside the weights, which are read as before.

    bf16:  norm -> product -> rounded -> rotated -> rounded ...        x + branch -> rounded
    wide:  norm -> rounded -> product -> rotated -> rounded for caches  x + branch in fp32
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.decoder import Decoder
from model.mlp import GatedMLP, PlainMLP

NARROW = (torch.bfloat16, torch.float16)
PARTS = (Attention, GatedMLP, PlainMLP)


def wide_product(x: Tensor, weight_NK: Tensor) -> Tensor:
    """x W^T, [.., N] of [.., K]: inputs as narrow as the weights, sums in fp32."""
    if not weight_NK.is_cuda or weight_NK.dtype not in NARROW:
        return F.linear(x.to(weight_NK.dtype).float(), weight_NK.float())
    rows = x.to(weight_NK.dtype).reshape(-1, x.shape[-1])
    if len(rows) == 1 and torch.compiler.is_compiling():
        # when tuning, inductor makes such a sum of one row's product itself, but forgets out_dtype and rounds it
        return (rows.float() * weight_NK.float()).sum(-1).unflatten(0, (*x.shape[:-1], -1))
    return torch.mm(rows, weight_NK.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])


class WideLinear(nn.Linear):
    """A matrix that gives fp32."""

    def forward(self, x: Tensor) -> Tensor:
        y = wide_product(x, self.weight)
        return y if self.bias is None else y + self.bias.float()


class WideDecoder(Decoder):
    """A decoder whose head is one of these products as well; the matrix may be the embedding's."""

    def head_product(self, hidden_BTC: Tensor) -> Tensor:
        return wide_product(hidden_BTC, self.embedding.weight if self.head is None else self.head.weight)


def can_widen(model: Decoder) -> bool:
    """Whether all matrices are plain ones of known parts; one's own may multiply what they get by their weights."""
    if model.embedding.weight.dtype not in NARROW or model.config.own_parts:
        return False
    return all(
        type(part) in PARTS and type(last) is nn.Linear
        for block in model.blocks
        for part, last in ((block.attention, block.attention.output), (block.mlp, block.mlp.down))  # type: ignore[union-attr]
    )


def widen(model: nn.Module) -> None:
    """Gives it such matrices, in place; weights stay where they are."""
    if type(model) is Decoder:  # others have a head of their own
        model.__class__ = WideDecoder
    for name, part in list(model.named_modules()):
        if type(part) in PARTS:
            for child, matrix in list(part.named_children()):
                if type(matrix) is nn.Linear:
                    with torch.device("meta"):
                        wide = WideLinear(matrix.in_features, matrix.out_features, bias=matrix.bias is not None)
                    wide.weight, wide.bias = matrix.weight, matrix.bias
                    model.set_submodule(f"{name}.{child}", wide)
