"""Checkpoint folders: written beside, synced, renamed; verified before use; never pickle.

    model.safetensors      fp32 weights by the names of Decoder.state_dict()
    optimizer.safetensors  optimizer states by kind and parameter name
    NAME.safetensors       the tensors of each further component of the run, such as averaged weights
    config.json            the architecture, vocabulary, context length, tokenizer hash
    state.json             where training stands: step, tokens, best validation loss ...
    run.json               what the run is made of: params, hashes of data, tokenizer and code
    loss.csv, probes.csv   the lines up to this step, for a run that begins here; probes only if there are any
    manifest.json          size and sha256 of every other file, written last

In the scratch folder, tensors of a model that lies in parts do so too, as model-00001-of-00002.safetensors and the
like (stages/train/parts.py). Equal training gives equal bytes: no file holds a time, a host or a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from stages.errors import BadInput
from stages.files import file_sha256, sync, write_json
from stages.weights_file import readable

if TYPE_CHECKING:
    import torch

    from model.decoder import Decoder

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    config: dict[str, Any],
    state: dict[str, Any],
    extra: Mapping[str, dict[str, torch.Tensor]] | None = None,
    origin: dict[str, Any] | None = None,
    tables: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint so that `folder` is whole or is not there, at any moment of a kill.

    Args:
        extra: the tensors of further components; `{"ema": ..}` becomes ema.safetensors.
        origin: the content of run.json.
        tables: the content of loss.csv and its like, by name.
    """
    beside = partial_of(folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, tensors in {"model": model, "optimizer": optimizer, **(extra or {})}.items():
        write_tensors(beside / f"{name}.safetensors", tensors)
    write_tables(beside, config, state, origin, tables)
    seal(folder)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A file of safetensors. Raises OSError, as any file does."""
    from safetensors.torch import save_file

    with refused_by_system(path):
        save_file({key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}, path)
        readable(path)


def write_tables(
    beside: Path,
    config: dict[str, Any],
    state: dict[str, Any],
    origin: dict[str, Any] | None = None,
    tables: Mapping[str, bytes] | None = None,
) -> None:
    """What is no tensor (`save_checkpoint`)."""
    write_json(beside / "config.json", config)
    write_json(beside / "state.json", state)
    write_json(beside / "run.json", origin or {})
    for name, content in {"loss.csv": b"", **(tables or {})}.items():
        (beside / name).write_bytes(content)


def described(path: Path) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def seal(folder: Path, others: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Gives what lies in the folder beside its manifest and, once all of it is on the disk, its name.

    Args:
        others: files that are on the disk already, with what the manifest says about them.
    """
    beside, others = partial_of(folder), others or {}
    files = sorted(path for path in beside.iterdir() if path.name not in others)
    manifest = {**others, **{path.name: described(path) for path in files}}
    write_json(beside / MANIFEST, dict(sorted(manifest.items())))
    for path in (*files, beside / MANIFEST):
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    sync(folder.parent)


def folder_of(run: Path, step: int) -> Path:
    """The checkpoint of a step in the scratch folder of a run."""
    return run / f"step-{step:08d}"


def checkpoints_in(run: Path) -> dict[int, Path]:
    """Every checkpoint in the scratch folder of a run, whole or damaged, by step."""
    return {int(path.name.removeprefix("step-")): path for path in sorted(run.glob("step-" + "[0-9]" * 8))}


def named(path: str, root: Path) -> Path | None:
    """The checkpoint that a param names: as it stands, or from the main repository, of which DVC's queued
    experiments are copies."""
    found = Path(path).expanduser()
    bases = (root, Path(os.environ.get("DVC_ROOT") or root))
    return next((base / found for base in bases if (base / found / MANIFEST).is_file()), None)


def wrong_sha256(folder: Path, wanted: str) -> str | None:
    """The problem if another checkpoint than the wanted one lies there. Its manifest names it, as that has the sha256
    of every other file."""
    found = file_sha256(folder / MANIFEST)
    if found == wanted:
        return None
    return f"{folder / MANIFEST} has sha256 {found}, not {wanted!r}; set it to that if it is the one you mean"


def partial_of(folder: Path) -> Path:
    """Where a checkpoint grows before it gets its name."""
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def refused_by_system(path: Path) -> Iterator[None]:
    """Raises as OSError what safetensors tells in words, "No space left on device (os error 28)", while it writes."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there in its size; milliseconds where `problem_of` reads all bytes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest.items())
    except (OSError, ValueError):
        return False


def problem_of(folder: Path, number: int = 0, of: int = 1) -> str | None:
    """Why the checkpoint is not whole, or None; by every `of`-th of its files, from `number` on."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{folder / MANIFEST}: {error}"
    for name, entry in list(manifest.items())[number::of]:
        path = folder / name
        if not path.exists():
            return f"{path}: missing"
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            return f"{path}: differs from its checksum in {MANIFEST}"
    return None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """config.json or state.json of a checkpoint.

    Raises:
        BadInput: the file is missing or damaged.
    """
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / name}: {error}; run `dvc checkout`, or `dvc repro train`") from None


def model_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The architecture of a checkpoint and the whole of its config.json."""
    config = read_json(folder, "config.json")
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(config["model"]) - known)
    if unknown:
        raise BadInput(f"{folder / 'config.json'}: unknown model keys {', '.join(unknown)}: from another version")
    return ModelConfig(**config["model"]), config


def load_model(folder: Path, device: str = "cpu") -> Decoder:
    """The model of a checkpoint in eval mode.

    Raises:
        BadInput: a file that is missing, damaged, or does not fit its config.json.
    """
    from safetensors.torch import load_file

    from model.decoder import Decoder

    problem = problem_of(folder)
    if problem:
        raise BadInput(f"{problem}; run `dvc checkout`, or `dvc repro train`")
    architecture, config = model_config(folder)
    model = Decoder(architecture, config["vocab_size"], config["context_length"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(device).eval()
