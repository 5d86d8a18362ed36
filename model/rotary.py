"""Rotary position embedding (Su et al., 2021), in the half-split layout of Hugging Face, and its scalings.

Channel i and channel i + D/2 of a head form a pair that is turned by position * theta^(-2i/D). The
product of a query and a key then depends on the distance between them alone: adding 7 to every
position of a document leaves all attention as it was.

A model that is to read more tokens than it was trained on turns more slowly (`rope_scaling`):

    linear   every frequency / factor                                 Chen et al., 2023
    ntk      theta * factor^(D/(D-2)): the slowest pair / factor      "NTK-aware", 2023
    yarn     slow pairs / factor, fast ones kept, a ramp between; cosines and sines * (0.1 ln factor + 1)
                                                                      Peng et al., 2023
    llama3   the same idea with another ramp, and no change of scale  Llama 3.1, 2024

A pair is slow or fast by the turns it makes within `rope_original_length` tokens: fewer than 1, more than
32 in yarn; fewer than 1, more than 4 in llama3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig

YARN_SLOW, YARN_FAST = 1.0, 32.0
LLAMA3_SLOW, LLAMA3_FAST = 1.0, 4.0


def frequencies(config: ModelConfig, width: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Radians per position of each of the width/2 pairs, fp32, and the factor of cosines and sines."""
    channel = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    theta, factor = config.rope_theta, config.rope_factor
    if config.rope_scaling == "ntk" and width > 2:
        theta = theta * factor ** (width / (width - 2))
    frequency = 1.0 / theta ** (channel / width)  # in this form to the last bit what transformers has
    if config.rope_scaling == "linear":
        return frequency / factor, 1.0
    if config.rope_scaling == "yarn":
        kept = 1 - _yarn_ramp(config, width, device)
        return frequency / factor * (1 - kept) + frequency * kept, 0.1 * math.log(factor) + 1
    if config.rope_scaling == "llama3":
        turns = config.rope_original_length * frequency / (2 * math.pi)
        kept = ((turns - LLAMA3_SLOW) / (LLAMA3_FAST - LLAMA3_SLOW)).clamp(0, 1)
        return frequency / factor * (1 - kept) + frequency * kept, 1.0
    return frequency, 1.0


def _yarn_ramp(config: ModelConfig, width: int, device: torch.device | None) -> Tensor:
    """0 for pairs that are kept, 1 for pairs that are scaled; linear in the number of the pair."""

    def pair_with(turns: float) -> float:
        wavelength = config.rope_original_length / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(YARN_FAST)), 0)
    high = min(math.ceil(pair_with(YARN_SLOW)), width - 1)
    pair = torch.arange(width // 2, device=device, dtype=torch.float32)
    return ((pair - low) / max(high - low, 0.001)).clamp(0, 1)


def rotation(positions_BT: Tensor, config: ModelConfig, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every position and channel, in fp32, each [B, 1, T, width]."""
    frequency, scale = frequencies(config, width, positions_BT.device)
    angle = positions_BT[:, None, :, None].float() * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * scale, angle.sin() * scale


def rotate(x_BHTD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns every pair of channels by its angle."""
    left, right = x_BHTD.chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x_BHTD * cosine + turned * sine).to(x_BHTD.dtype)
