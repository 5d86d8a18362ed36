"""First weights from a Hugging Face folder, `execution.init_from`, instead of random ones.

The params must describe the very architecture of the folder, so that a run's params always say what was
trained; stages/first_weights.py compares them. An embedding may have more rows than the tokenizer has ids, as
Qwen3's has 151,936 for 151,669: where the folder's tokenizer.json is that of the packed data, no id points at the
rest, and those rows are left out. Without a tokenizer.json the numbers must be equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.decoder import Decoder
from stages.entry import Job, file_sha256
from stages.errors import BadInput
from stages.first_weights import (
    AGAIN,
    OWN_TYPE,
    architecture_in,
    own_size,
    problem_of_first_weights,
    read_object,
    tokenizer_problem,
    vocabulary_in,
)
from stages.huggingface import from_huggingface

PREFIX = "decoder."  # of the tensors in an export with our own code
TOKENIZER = "data/tokenizer/tokenizer.json"


def load_initial_weights(model: Decoder, job: Job, tokenizer_sha256: str) -> None:
    """Fills the decoder.

    Args:
        job: its workspace holds the tokenizer. tokenizer_sha256: of the one of the packed data.

    Raises:
        BadInput: the folder is damaged, or of other weights, architecture, vocabulary or tokenizer.
    """
    if found := problem_of_first_weights(model.config, job.execution, job.root):
        raise BadInput(f"params.yaml: {'.'.join(found[0])}: {found[1]}")
    folder = job.execution.init_folder(job.root)
    try:
        settings = read_object(folder / "config.json")
        check_vocabulary(settings, folder, model.vocab_size, job.root / TOKENIZER, tokenizer_sha256)
        model.load_state_dict(tensors_of(settings, folder, model))
    except BadInput as error:
        raise BadInput(f"params.yaml: execution.init_from: {folder}: {error}") from None


def check_vocabulary(settings: dict[str, Any], folder: Path, vocab_size: int, ours: Path, sha256: str) -> None:
    """Refuses a folder of another tokenizer than that of the packed data."""
    theirs = vocabulary_in(settings)
    known = (folder / "tokenizer.json").is_file()
    if known:
        if not ours.is_file() or file_sha256(ours) != sha256:
            raise BadInput(f"{TOKENIZER} is not the one of the packed data; run `dvc repro pack`")
        if problem := tokenizer_problem(folder, ours):
            raise BadInput(f"tokenizer.json: another tokenizer: {problem}; name weights of the tokenizer of the data")
    if theirs < vocab_size or (theirs > vocab_size and not known):
        raise BadInput(
            f"config.json: a vocabulary of {theirs}, the packed data have one of {vocab_size}; name weights of the "
            "tokenizer of the data (more rows are taken for padding where tokenizer.json lies beside and is the same)"
        )


def tensors_of(settings: dict[str, Any], folder: Path, model: Decoder) -> dict[str, Any]:
    """Tensors of the folder, by our names and of our sizes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        theirs = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise BadInput(f"model.safetensors: {error}; {AGAIN}") from None
    for name, tensor in theirs.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"model.safetensors: {name} holds values that are not finite; {AGAIN}")
    tensors = (
        own_tensors(settings, theirs) if settings["model_type"] == OWN_TYPE else from_huggingface(settings, theirs)[1]
    )
    wanted = model.state_dict()
    for name in ("embedding.weight", "head.weight"):
        if name in tensors:  # rows from vocab_size on are padding, here and there
            table = tensors[name]
            tensors[name] = table.new_zeros(len(wanted[name]), table.shape[1])
            tensors[name][: model.vocab_size] = table[: model.vocab_size]
    if "position_embedding.weight" in tensors:
        table, n = tensors["position_embedding.weight"], len(wanted["position_embedding.weight"])
        if len(table) < n:
            raise BadInput(f"{len(table)} learned positions; set pack.context_length, which is {n}, to at most that")
        tensors["position_embedding.weight"] = table[:n]
    return tensors


def own_tensors(settings: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Those of an export with Millrace's own code, held against the decoder that its config.json describes."""
    sizes = [own_size(settings, key) for key in ("vocab_size", "context_length")]
    with torch.device("meta"):
        described = Decoder(architecture_in(settings), *sizes).state_dict()
    wanted = {f"{PREFIX}{name}": list(tensor.shape) for name, tensor in described.items()}
    if wrong := sorted(wanted.keys() ^ theirs.keys()):
        raise BadInput(f"model.safetensors: {wrong[0]} is missing or has no place in this architecture; {AGAIN}")
    for name, size in wanted.items():
        if list(theirs[name].shape) != size:
            raise BadInput(f"model.safetensors: {name} is {list(theirs[name].shape)}; by config.json it is {size}")
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in theirs.items()}
