"""Builds the parts of a block from their names in the config: norms, attentions, MLPs.

A name with a dot is a class of one's own, `model.average.AverageAttention` of model/average.py. It is made
from the config and called as the built-in ones are:

    a norm          Class(size, eps)(x)
    an MLP          Class(config)(x)
    an attention    Class(config)(x_BTC, context), context being model.context.Context

Its file stands below model/, where the fingerprints see it: an edit in it retrains. What such a class raises is told
in one line with its place, such as `norm: model.mine.Norm: model/mine.py:7: KeyError: 'width'`.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from model.attention import Attention
from model.config import ModelConfig
from model.experts import Experts
from model.latent import LatentAttention
from model.mlp import ACTIVATIONS, GATES, GatedMLP, PlainMLP
from model.norm import DyT, LayerNorm, RMSNorm

NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm, "dyt": DyT}
ATTENTIONS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "full": Attention,
    "swa": lambda config: Attention(config, "swa"),
    "mla": LatentAttention,
}
MLPS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    **dict.fromkeys(GATES, GatedMLP),
    **dict.fromkeys(ACTIVATIONS, PlainMLP),
}


OWN_MODULE = re.compile(r"model\.[A-Za-z_]\w*")


def norm_of(config: ModelConfig, size: int) -> nn.Module:
    return _made(NORMS, "norm", config.norm, size, config.norm_eps)


def attention_of(config: ModelConfig, kind: str) -> nn.Module:
    return _made(ATTENTIONS, "layer_pattern", kind, config)


def mlp_of(config: ModelConfig, layer: int) -> nn.Module:
    return Experts(config) if config.has_experts(layer) else _made(MLPS, "mlp", config.mlp, config)


def told(name: str, error: Exception) -> str:
    """What a class of one's own raised, with the last place in its file, in one line."""
    file = Path(f"{name.rpartition('.')[0].replace('.', '/')}.py")
    possible = {str(Path(folder, file.name)) for folder in sys.modules[__package__].__path__}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in possible]
    place = f"{file}:{lines[-1]}: " if lines else ""
    return f"{name}: {place}{type(error).__name__}: {' '.join(str(error).split())}"


def _made(built_in: dict[str, Any], field: str, name: str, *arguments: Any) -> nn.Module:
    if name in built_in:
        return built_in[name](*arguments)
    module, _, attribute = name.rpartition(".")
    if not OWN_MODULE.fullmatch(module):
        raise ValueError(f"{field}: {name!r} is unknown; there are {', '.join(built_in)}, or model.FILE.CLASS")
    try:
        # Relative, since an export carries these files under another package's name.
        return getattr(importlib.import_module(module.removeprefix("model"), __package__), attribute)(*arguments)
    except Exception as error:  # a user's code raises whatever it likes
        raise ValueError(f"{field}: {told(name, error)}") from error
