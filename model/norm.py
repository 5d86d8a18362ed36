"""Norms of the last dimension, chosen by `model.norm`. Statistics in fp32, whatever comes in.

    rmsnorm     x / rms(x) * weight                       Zhang and Sennrich, 2019
    layernorm   (x - mean(x)) / std(x) * weight + bias    Ba et al., 2016
    dyt         tanh(alpha * x) * weight + bias           Zhu et al., 2025: no statistics at all

Example: [3, 4] has rms 3.54 and becomes [0.85, 1.13] by rmsnorm, [-1, 1] by layernorm, and
[0.91, 0.96] by dyt, whose alpha starts at 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Without `gain` it has no parameter."""

    def __init__(self, size: int, eps: float, gain: bool = True):
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(size)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or x.dtype == self.weight.dtype:
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return F.rms_norm(x.float(), (self.size,), self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), (self.size,), self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class DyT(nn.Module):
    """Dynamic tanh: squashes outliers as a norm does, element by element. `eps` has no meaning here."""

    INITIAL_ALPHA = 0.5

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), self.INITIAL_ALPHA))
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha.float() * x.float()) * self.weight.float() + self.bias.float()
        return y.to(x.dtype)
