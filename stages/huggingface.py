"""Our decoder <-> one of transformers: config.json and tensors, in both directions, for every twin.

    stages/huggingface_twins.py      which decoders transformers has, and which of them a config is
    stages/huggingface_settings.py   our config -> config.json
    stages/huggingface_config.py     config.json -> our config, or the key that our decoder does not have
    stages/huggingface_names.py      which tensor of theirs is which of ours, and of what size
    stages/huggingface_weights.py    conventions of the tensors, and what files of the hub have otherwise

Example: the default, pre-norm with QK-norm per head, is a Qwen3. A decoder without a twin (DyT, sinks, latent
attention in some layers, ..) is not refused: `twin_of` is None and the export brings our own code along.

Works on dicts of tensors or arrays and imports neither torch nor transformers; files are the business of
those who call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from stages.errors import BadInput
from stages.huggingface_config import config_of, vocab_size_of
from stages.huggingface_settings import settings_of
from stages.huggingface_twins import ARCHITECTURES, Architecture, twin_of
from stages.huggingface_weights import Weights, from_theirs, to_theirs


def architecture_of(config: ModelConfig) -> Architecture:
    """The twin of this decoder.

    Raises:
        BadInput: it has none.
    """
    architecture = twin_of(config)
    if architecture is None:
        raise BadInput("params.yaml: model: transformers has no decoder that computes the same function")
    return architecture


def to_huggingface(
    weights: Weights, config: ModelConfig, vocab_size: int, context_length: int, token_ids: Mapping[str, int]
) -> tuple[dict[str, Any], Weights]:
    """config.json and the weights of the twin.

    Args:
        weights: `Decoder.state_dict()`.
        vocab_size: ids below it are real; rows from there on are left out.
        context_length: the longest input that training saw.
        token_ids: bos_token_id, eos_token_id and pad_token_id.

    Returns:
        The configuration, in the form of transformers 5, and tensors by their names there.

    Raises:
        BadInput: it has no twin.
    """
    architecture = architecture_of(config)
    settings = settings_of(architecture, config, vocab_size, context_length, token_ids)
    return settings, to_theirs(architecture, config, vocab_size, weights)


def from_huggingface(settings: Mapping[str, Any], weights: Weights) -> tuple[ModelConfig, Weights]:
    """The decoder that a config.json of one of these architectures describes, and its weights (of torch).

    The tensors may be those of `state_dict()` in transformers or of a file of the hub, in any floating type.
    Ours are fp32, never fused, and know nothing of how evenly experts were chosen: `load` is 1/E.

    Raises:
        BadInput: an architecture, a setting or a tensor that our decoder does not have; it is named.
    """
    config = config_of(settings)
    architecture, interleaved = ARCHITECTURES[settings["model_type"]], settings.get("rope_interleave", True)
    return config, from_theirs(architecture, config, vocab_size_of(settings), weights, interleaved)
