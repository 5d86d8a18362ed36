"""Small decoders and rows for the tests of the model."""

from __future__ import annotations

import torch

from model.backends import make_mask
from model.config import ModelConfig
from model.context import EVERYTHING, Context, Mask, Places, Reach
from model.rotary import rotation


def drawn(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with weights large enough that every part of it matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.5 if parameter.ndim < 2 else 0.0, 0.3, generator=generator)
    return module.eval()


def places(lengths: list[int], padding: int = 0) -> Places:
    """One row with documents of these lengths and padding behind."""
    segments = [i for i, n in enumerate(lengths) for _ in range(n)] + [-1] * padding
    positions = [j for n in lengths for j in range(n)] + list(range(padding))
    return Places(torch.tensor([positions]), torch.tensor([segments]))


def context_of(config: ModelConfig, where: Places, kind: str, width: int = 0) -> Context:
    """What a decoder would hand to a layer of this kind."""
    reach = Reach(config.window, config.sink_tokens) if kind == "swa" else EVERYTHING
    masks: dict[str, Mask] = {kind: make_mask("sdpa", where, reach, True)}
    width = width or (config.qk_rope_head_dim if kind == "mla" else config.width_of_head)
    return Context(where, {width: rotation(where.positions, config, width)}, masks)
