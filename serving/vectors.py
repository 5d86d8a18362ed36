"""Calls a norm or an MLP with vectors alone, [C] or [B, C], where training has [B, T, C].

Built-in ones ask for a last dimension and nothing else. One of one's own may begin with `rows, length, width =
x.shape`, so it is given one token of each row, [B, 1, C]. A subclass of a built-in one is one's own.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.mlp import GatedMLP, PlainMLP
from model.norm import DyT, LayerNorm, RMSNorm

BUILT_IN = (nn.Identity, RMSNorm, LayerNorm, DyT, GatedMLP, PlainMLP)


def of_vectors(part: nn.Module, x: Tensor) -> Tensor:
    """What the part makes of each vector."""
    if type(part) in BUILT_IN:
        return part(x)
    return part(x.reshape(-1, 1, x.shape[-1])).reshape(x.shape)
