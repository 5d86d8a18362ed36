"""Whether the first weights are what the params say, before any work. No torch.

`model.init_sha256` says which weights, `execution.init_from` where they lie: a folder that moves trains nothing
again, and once a checkpoint has their successors it is needed no more.

    config.json          one of the architectures of docs/export.md, or Millrace's own (`model_type: millrace`)
    model.safetensors    names, sizes, sha256, and that no value is NaN (stages/weights_file.py)
    tokenizer.json       where there is one, it must be the tokenizer of the packed data

The stage `code` asks `problem_of_first_weights` until a training has begun from them, and compares the tokenizer with
a `tokenizer.file`. So does train, which then loads the tensors (stages/train/initial.py) and compares the tokenizer
with that of the packed data, which are not there when `code` runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import ModelConfig
from model.pattern import expand
from stages.entry import plain, scratch_root
from stages.errors import BadInput
from stages.execution import Execution
from stages.files import file_sha256
from stages.huggingface import from_huggingface
from stages.huggingface_config import config_of, contract, vocab_size_of
from stages.huggingface_weights import NO_WEIGHTS
from stages.params import strict
from stages.weights_file import AGAIN, EXPONENTS, WEIGHTS, first_not_finite, read_header

OWN_TYPE = "millrace"
# How new weights are drawn, what training adds, and where weights come from: no property of the folder.
FREE = {"preset", "init_std", "residual_init", "init_sha256", "dropout", "balance_loss", "router_z_loss"}
OWN_PREFIX = "decoder."  # of the tensors in an export with our own code
SHA256, FOLDER = ["model", "init_sha256"], ["execution", "init_from"]  # the keys that are blamed
Problem = tuple[list[str], str]


def problem_of_first_weights(
    config: ModelConfig, execution: Execution, root: Path, context_length: int
) -> Problem | None:
    """The key to blame and why the weights do not fit; None if they do, or if they shall be drawn.

    Args:
        context_length: of the packed data.
    """
    if not execution.init_from:
        told = "names first weights, and no checkpoint goes on from them; set execution.init_from to their folder"
        return (SHA256, told) if config.init_sha256 else None
    folder = execution.init_folder(root)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            return FOLDER, f"{folder / name} is not there; name a Hugging Face folder in one file of weights"
    for workspace in (root, Path(os.environ.get("DVC_ROOT") or root)):
        if folder.resolve().is_relative_to((workspace / "data").resolve()):
            return FOLDER, f"{folder} lies in data/, which the stages write anew; copy the folder elsewhere first"
    try:
        settings = read_object(folder / "config.json")
        if lines := differences(config, architecture_in(settings)):
            return FOLDER, f"{folder} is another architecture; set {', '.join(lines)}"
        check_tensors(folder, settings, context_length)
    except BadInput as error:
        return FOLDER, f"{folder}: {error}"
    found = file_sha256(folder / WEIGHTS)
    if not config.init_sha256:
        return SHA256, f"is empty; to start from {folder} set it to {found}, else set execution.init_from to ''"
    if found != config.init_sha256:
        mend = "if it is the one you mean, set model.init_sha256 to it"
        return SHA256, f"{folder / WEIGHTS} has sha256 {found}, not {config.init_sha256}; {mend}"
    return None


def has_begun(config: ModelConfig, execution: Execution, root: Path) -> bool:
    """Whether there is a checkpoint of this very model, published or unfinished, so that the first weights, which are
    part of its identity, may be gone. What else decides whether training starts anew is for train to say."""
    unfinished = Path(execution.scratch or scratch_root(root)) / "train"
    for path in (root / "data/train/last/config.json", *unfinished.glob("*/step-????????/config.json")):
        with contextlib.suppress(OSError, BadInput):  # a damaged checkpoint is none
            if read_object(path).get("model") == plain(config):
                return True
    return False


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; refused by the name of the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name}: byte {error.start} is not UTF-8; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path.name}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path.name}: holds no object of keys and values; {AGAIN}")
    return content


def architecture_in(settings: Mapping[str, Any]) -> ModelConfig:
    """The decoder of a config.json, of transformers or of Millrace's own code."""
    if settings.get("model_type") != OWN_TYPE:
        try:
            config = config_of(settings)
            vocab_size_of(settings)
            return config
        except BadInput as error:
            raise BadInput(f"{error}; name a folder of an architecture in docs/export.md") from None
    own_size(settings, "vocab_size")
    own_size(settings, "context_length")
    described = settings.get("model")
    if not isinstance(described, dict):
        raise BadInput(f"config.json: model holds no object of keys and values; {AGAIN}")
    try:
        strict(ModelConfig).model_validate(described)
        return ModelConfig(**described)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(f"config.json: model.{first['loc'][0]}: {first['msg']}; {AGAIN}") from None
    except ValueError as error:
        raise BadInput(f"config.json: model: {error}") from None


def vocabulary_in(settings: Mapping[str, Any]) -> int:
    """The rows of the embedding, of a config.json that `architecture_in` reads."""
    return own_size(settings, "vocab_size") if settings["model_type"] == OWN_TYPE else vocab_size_of(settings)


def own_size(settings: Mapping[str, Any], key: str) -> int:
    """A size in the config.json of an export with our own code."""
    found = settings.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BadInput(f"config.json: {key} is {found!r}; it must be an integer of at least 1; {AGAIN}")
    return found


def check_tensors(folder: Path, settings: Mapping[str, Any], context_length: int) -> None:
    """Refuses a file that does not hold the tensors of this architecture, in numbers, as floating weights."""
    import torch  # slow to load, and its tensors without values tell which sizes fit

    path = folder / WEIGHTS
    entries = read_header(path)
    for name, entry in entries.items():
        if not entry.is_floating and not NO_WEIGHTS.search(name):
            raise BadInput(
                f"{path.name}: {name} is {entry.dtype}; weights of integers or 8 bits are quantised, name a folder in "
                f"{', '.join(EXPONENTS)}"
            )
    tensors = our_tensors(settings, {n: torch.empty(e.shape, device="meta") for n, e in entries.items()})
    positions = tensors.get("position_embedding.weight")
    if positions is not None and len(positions) < context_length:
        raise BadInput(
            f"{len(positions)} learned positions; set pack.context_length, which is {context_length}, to at most that"
        )
    if wrong := first_not_finite(path, {n: e for n, e in entries.items() if not NO_WEIGHTS.search(n)}):
        raise BadInput(f"{path.name}: {wrong} holds values that are not finite; {AGAIN}")


def our_tensors(settings: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a folder by our names, fp32; those of torch, with or without values.

    Raises:
        BadInput: one is missing, has no place, or has another size than config.json gives it.
    """
    if settings["model_type"] != OWN_TYPE:
        return from_huggingface(settings, dict(theirs))[1]
    import torch

    from model.decoder import Decoder

    sizes = [own_size(settings, key) for key in ("vocab_size", "context_length")]
    try:
        with torch.device("meta"):
            described = Decoder(architecture_in(settings), *sizes).state_dict()
    except ValueError as error:  # of a class of the user's
        raise BadInput(f"config.json: model.{error}") from error
    prefix = OWN_PREFIX if any(name.startswith(OWN_PREFIX) for name in theirs) else ""  # none in a checkpoint
    wanted = {f"{prefix}{name}": list(tensor.shape) for name, tensor in described.items()}
    if wrong := sorted(wanted.keys() ^ theirs.keys()):
        raise BadInput(f"{WEIGHTS}: {wrong[0]} is missing or has no place in this architecture; {AGAIN}")
    for name, size in wanted.items():
        if list(theirs[name].shape) != size:
            raise BadInput(f"{WEIGHTS}: {name} is {list(theirs[name].shape)}; by config.json it is {size}")
    return {name.removeprefix(OWN_PREFIX): tensor.float() for name, tensor in theirs.items()}


def differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """The params that would have to change, as `model.n_layers=12`."""
    mine, yours = dataclasses.asdict(ours), dataclasses.asdict(theirs)
    for described, config in ((mine, ours), (yours, theirs)):  # derived sizes as what they come to
        described.update(head_dim=config.width_of_head, intermediate_size=config.width_of_mlp)
        described.update(expert_size=config.width_of_expert)
    yours["layer_pattern"] = contract(theirs.kinds)
    mine["layer_pattern"] = _in_layers(ours.layer_pattern, theirs.n_layers)
    free = set(FREE)
    if set(ours.kinds) == {"mla"}:
        free |= {"n_kv_heads", "head_dim", "qk_norm", "qk_norm_scope", "qk_norm_gain"}  # which it does not read
    if "swa" not in ours.kinds:
        free |= {"window", "sink_tokens"}
    return [f"model.{key}={yours[key]}" for key in mine if key not in free and mine[key] != yours[key]]


def _in_layers(pattern: str, n_layers: int) -> str:
    """A pattern as it is in so many layers, written short: `full` in 2 layers and in 3 is the same."""
    try:
        return contract(expand(pattern, n_layers))
    except ValueError:  # longer than they are
        return pattern


def tokenizer_problem(folder: Path, ours: Path) -> str | None:
    """How the folder's tokenizer gives other tokens than the one of the packed data, or None."""
    described, our_own = read_object(folder / "tokenizer.json"), read_object(ours)
    tokens, merges = _tokens_and_merges(described)
    our_tokens, our_merges = _tokens_and_merges(our_own)
    for token in sorted(tokens.keys() | our_tokens.keys()):
        if tokens.get(token) != our_tokens.get(token):
            ids = [found.get(token, "no id") for found in (tokens, our_tokens)]
            return f"token {token!r} has {ids[0]} there and {ids[1]} in {ours}"
    for number, (one, other) in enumerate(zip(merges, our_merges, strict=False)):
        if one != other:
            return f"merge {number} is {' '.join(one)!r} there and {' '.join(other)!r} in {ours}"
    if len(merges) != len(our_merges):
        return f"{len(merges)} merges there and {len(our_merges)} in {ours}"
    for key in ("normalizer", "pre_tokenizer"):
        if _steps(described.get(key)) != _steps(our_own.get(key)):
            return f"its {key} is not the one in {ours}, so it makes other tokens of a text"
    return None


def _steps(described: Any) -> list[Any]:
    """A normalizer or pre_tokenizer as a flat list of steps, without what has no effect on tokens."""
    if not isinstance(described, Mapping):
        return [described] if described else []
    if described.get("type") == "Sequence":
        parts = described.get("normalizers") or described.get("pretokenizers") or []
        return [step for part in parts for step in _steps(part)]
    default = {"use_regex": True} if described.get("type") == "ByteLevel" else {}
    return [{**default, **{key: value for key, value in described.items() if key != "trim_offsets"}}]


def _tokens_and_merges(tokenizer: Mapping[str, Any]) -> tuple[dict[str, int], list[list[str]]]:
    """The id of every token, special ones included, and the pairs in their order, however they are written."""
    try:
        tokens = {**tokenizer["model"]["vocab"]}
        tokens.update({added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()})
        merges = [pair.split(" ") if isinstance(pair, str) else [*pair] for pair in tokenizer["model"]["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise BadInput("tokenizer.json: is no byte-level BPE with a vocabulary and merges") from None
    return tokens, merges
