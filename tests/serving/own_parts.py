"""Parts as users write them, importable as `model.mine` in the tests of this folder (conftest.py)."""

from __future__ import annotations

import torch
from torch import nn

from model.attention import Attention
from model.mlp import GatedMLP
from model.norm import RMSNorm


class Gated(Attention):
    """The same parts with another forward."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTC, context, cache=None):
        return super().forward(x_BTC, context, cache) * torch.sigmoid(self.gate(x_BTC))


class Centred(RMSNorm):
    """The same weight with another forward."""

    def forward(self, x):
        return super().forward(x - x.mean(dim=-1, keepdim=True))


class Clipped(GatedMLP):
    """The same matrices with another forward."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.gate, self.up, self.down = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.activation = torch.tanh

    def forward(self, x):
        return super().forward(x).clamp(-0.1, 0.1)


class WholeNorm(nn.Module):
    """Wants [B, T, C]."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        rows, length, width = x.shape
        flat = x.reshape(rows * length, width)
        return (flat / (flat.norm(dim=-1, keepdim=True) + self.eps) * self.weight).view(rows, length, width)


class WholeMLP(nn.Module):
    """Wants [B, T, C]."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.hidden_size)
        self.down = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        rows, length, width = x.shape
        return self.down(torch.tanh(self.up(x)).view(rows * length, width)).view(rows, length, width)


class Remembering(Attention):
    """Reads from a cache of one's own."""

    def new_cache(self, batch, capacity, like):
        return OwnCache(super().new_cache(batch, capacity, like))


class OwnCache:
    """What serving asks of a cache, and no more: there are no `slots`."""

    def __init__(self, kept):
        self.kept = kept

    @property
    def n_bytes(self):
        return self.kept.n_bytes

    def part(self, first, end, length):
        return OwnCache(self.kept.part(first, end, length))

    def copy_row(self, source, target, length):
        self.kept.copy_row(source, target, length)

    def attend(self, *arguments):
        return self.kept.attend(*arguments)


class Doubled(nn.Linear):
    """The same weight with another forward."""

    def forward(self, x):
        return 2 * super().forward(x)


class Doubling(nn.Module):
    """An MLP of two matrices, one of which is no plain one."""

    def __init__(self, config):
        super().__init__()
        self.up, self.down = (kind(config.hidden_size, config.hidden_size) for kind in (Doubled, nn.Linear))

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))
