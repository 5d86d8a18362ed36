"""First weights from a Hugging Face folder, `execution.init_from`, instead of random ones.

The params must describe the very architecture of the folder, so that a run's params always say what was
trained; stages/first_weights.py compares them. An embedding may have more rows than the tokenizer has ids, as
Qwen3's has 151,936 for 151,669: where the folder's tokenizer.json is that of the packed data, no id points at the
rest, and those rows are left out. Without a tokenizer.json the numbers must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.decoder import Decoder
from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256
from stages.first_weights import (
    WEIGHTS,
    our_tensors,
    problem_of_first_weights,
    read_object,
    tokenizer_problem,
    vocabulary_in,
)
from stages.weights_file import AGAIN

TOKENIZER = "data/tokenizer/tokenizer.json"


def load_initial_weights(model: Decoder, job: Job, index: Mapping[str, Any]) -> None:
    """Fills the decoder.

    Args:
        job: its workspace holds the tokenizer. index: of the packed data.

    Raises:
        BadInput: the folder is damaged, or of other weights, architecture, vocabulary or tokenizer.
    """
    if found := problem_of_first_weights(model.config, job.execution, job.root, index["context_length"]):
        raise BadInput(f"params.yaml: {'.'.join(found[0])}: {found[1]}")
    folder = job.execution.init_folder(job.root)
    try:
        settings = read_object(folder / "config.json")
        check_vocabulary(settings, folder, model.vocab_size, job.root / TOKENIZER, index["tokenizer_sha256"])
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
        tensors = our_tensors(settings, load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise BadInput(f"{WEIGHTS}: {error}; {AGAIN}") from None
    wanted = model.state_dict()
    for name in ("embedding.weight", "head.weight"):
        if name in tensors:  # rows from vocab_size on are padding, here and there
            table = tensors[name]
            tensors[name] = table.new_zeros(len(wanted[name]), table.shape[1])
            tensors[name][: model.vocab_size] = table[: model.vocab_size]
    if (name := "position_embedding.weight") in tensors:
        tensors[name] = tensors[name][: len(wanted[name])]
    return tensors
