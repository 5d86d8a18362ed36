"""Rotary position embedding (Su et al., 2021), in the half-split layout of Hugging Face.

Channel i and channel i + D/2 of a head form a pair that is turned by position * theta^(-2i/D). The
product of a query and a key then depends on the distance between them alone: adding 7 to every
position of a document leaves all attention as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every position and channel, in fp32, each [B, 1, T, head_dim]."""
    channel = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32)
    frequency = theta ** (-channel / head_dim)
    angle = positions_BT[:, None, :, None].float() * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BHTD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns every pair of channels by its angle."""
    left, right = x_BHTD.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x_BHTD * cosine + turned * sine).to(x_BHTD.dtype)
