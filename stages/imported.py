"""Turns a folder of transformers, or an export with our own code, into a checkpoint folder to continue from.

    model.safetensors   fp32, by the names of Decoder.state_dict(); several files of weights become one
    config.json         of a checkpoint, with `model_type: millrace`, so that execution.init_from takes the folder
    state.json          step 0, and what it was made from
    tokenizer.json      as it was, if there was one; manifest.json as in every checkpoint

What an optimizer had learned, the step, and the order of the data are no part of such a folder: the run that continues
from it is a new one, with a warm-up of its own. Generation settings and chat templates are left behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model.config import ModelConfig
from stages.checkpoint import partial_of, save_checkpoint, seal
from stages.entry import plain
from stages.errors import BadInput
from stages.exported import LENGTH_KEYS
from stages.files import file_sha256
from stages.first_weights import OWN_TYPE, architecture_in, our_tensors, read_object, vocabulary_in
from stages.huggingface_weights import NO_WEIGHTS
from stages.weights_file import AGAIN, WEIGHTS, read_tensors

if TYPE_CHECKING:
    import torch

TOKENIZER = "tokenizer.json"


class Imported(NamedTuple):
    """What was written: its architecture and sizes, and the sha256 that params name."""

    config: ModelConfig
    vocab_size: int
    context_length: int
    n_parameters: int
    weights_sha256: str
    tokenizer_sha256: str


def import_folder(source: Path, target: Path) -> Imported:
    """Writes the checkpoint.

    Raises:
        BadInput: an architecture, a setting or a tensor that our decoder does not have; it is named.
    """
    if not (source / "config.json").is_file():
        raise BadInput(f"{source / 'config.json'} is not there; name a folder of transformers")
    if target.exists():
        raise BadInput(f"{target} is there already; name another folder with --out, or remove it")
    try:
        settings = read_object(source / "config.json")
        config, vocab_size = architecture_in(settings), vocabulary_in(settings)
        tensors = our_tensors(settings, trainable(source))
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    context_length = length_in(settings, tensors)
    tokenizer_sha256 = file_sha256(source / TOKENIZER) if (source / TOKENIZER).is_file() else ""
    described = {
        "model_type": OWN_TYPE, "model": plain(config), "vocab_size": vocab_size, "context_length": context_length,
        "tokenizer_sha256": tokenizer_sha256,
    }  # fmt: skip
    state = {"run": "imported", "step": 0, "tokens": 0, "seed": 0, "imported_from": settings.get("model_type")}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, tensors, {}, described, state)
    if tokenizer_sha256:
        target.rename(partial_of(target))
        shutil.copyfile(source / TOKENIZER, partial_of(target) / TOKENIZER)
        (partial_of(target) / "manifest.json").unlink()
        seal(target)
    n_parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("mlp.load"))
    return Imported(config, vocab_size, context_length, n_parameters, file_sha256(target / WEIGHTS), tokenizer_sha256)


def trainable(source: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, floating and finite."""
    tensors = read_tensors(source)
    for name, tensor in tensors.items():
        if NO_WEIGHTS.search(name):
            continue
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            raise BadInput(f"{name} is {tensor.dtype}; quantised weights cannot be trained on")
        if not tensor.isfinite().all():
            raise BadInput(f"{name} holds values that are not finite; {AGAIN}")
    return tensors


def length_in(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    """The longest input that the folder says it can read."""
    if (table := tensors.get("position_embedding.weight")) is not None:
        return len(table)
    for key in LENGTH_KEYS:
        if isinstance(settings.get(key), int) and settings[key] > 0:
            return settings[key]
    raise BadInput(f"config.json says no length that the model can read; add {LENGTH_KEYS[0]}")
