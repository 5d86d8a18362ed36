"""Whether the first weights are what the params say, before any work. No torch.

`model.init_sha256` says which weights, `execution.init_from` where they lie: a folder that moves trains nothing
again, and once a checkpoint has their successors it is needed no more.

    config.json          one of the architectures of docs/export.md, or Millrace's own (`model_type: millrace`)
    model.safetensors    its header alone is read, and its sha256 compared
    tokenizer.json       where there is one, it must be the tokenizer of the packed data

The stage `code` asks `problem_of_first_weights` until a training has begun from them. So does train, which then
loads the tensors (stages/train/initial.py) and compares the tokenizer, since neither it nor the packed data are
there when `code` runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import ModelConfig
from model.pattern import expand
from stages.entry import file_sha256, plain, scratch_root
from stages.errors import BadInput
from stages.execution import Execution
from stages.huggingface_config import config_of, contract, vocab_size_of
from stages.huggingface_weights import NO_WEIGHTS
from stages.params import strict

OWN_TYPE = "millrace"
# How new weights are drawn, what training adds, and where weights come from: no property of the folder.
FREE = {"preset", "init_std", "residual_init", "init_sha256", "dropout", "balance_loss", "router_z_loss"}
FLOATING = ("F64", "F32", "F16", "BF16")
SHA256, FOLDER = ["model", "init_sha256"], ["execution", "init_from"]  # the keys that are blamed
WEIGHTS = "model.safetensors"
AGAIN = "download or export it again"
LARGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
Problem = tuple[list[str], str]


def problem_of_first_weights(config: ModelConfig, execution: Execution, root: Path) -> Problem | None:
    """The key to blame and why the weights do not fit; None if they do, or if they shall be drawn."""
    if not execution.init_from:
        told = "names first weights that no training here has begun from; set execution.init_from to their folder"
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
        check_header(folder / WEIGHTS)
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
        if path.is_file() and read_object(path).get("model") == plain(config):
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


def check_header(path: Path) -> None:
    """Refuses a file of safetensors that is cut off or holds other than floating weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise BadInput(f"{path.name}: is cut off or no file of safetensors; {AGAIN}")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
            kinds = {name: str(entry["dtype"]) for name, entry in entries.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise BadInput(f"{path.name}: its header is damaged; {AGAIN}") from None
    if not ends:
        raise BadInput(f"{path.name}: holds no tensor; {AGAIN}")
    if size != (whole := 8 + length + max(ends)):
        raise BadInput(f"{path.name}: has {size:,} bytes of {whole:,}; {AGAIN}")
    for name, kind in kinds.items():
        if kind not in FLOATING and not NO_WEIGHTS.search(name):
            raise BadInput(
                f"{path.name}: {name} is {kind}; weights of integers or 8 bits are quantised, name a folder in "
                f"{', '.join(FLOATING)}"
            )


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
    """How the folder's tokenizer differs in vocabulary or merges from the one of the packed data, or None."""
    tokens, merges = _tokens_and_merges(read_object(folder / "tokenizer.json"))
    our_tokens, our_merges = _tokens_and_merges(read_object(ours))
    for token in sorted(tokens.keys() | our_tokens.keys()):
        if tokens.get(token) != our_tokens.get(token):
            ids = [found.get(token, "no id") for found in (tokens, our_tokens)]
            return f"token {token!r} has {ids[0]} there and {ids[1]} in {ours}"
    for number, (one, other) in enumerate(zip(merges, our_merges, strict=False)):
        if one != other:
            return f"merge {number} is {' '.join(one)!r} there and {' '.join(other)!r} in {ours}"
    if len(merges) != len(our_merges):
        return f"{len(merges)} merges there and {len(our_merges)} in {ours}"
    return None


def _tokens_and_merges(tokenizer: Mapping[str, Any]) -> tuple[dict[str, int], list[list[str]]]:
    """The id of every token, special ones included, and the pairs in their order, however they are written."""
    try:
        tokens = {**tokenizer["model"]["vocab"]}
        tokens.update({added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()})
        merges = [pair.split(" ") if isinstance(pair, str) else [*pair] for pair in tokenizer["model"]["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise BadInput("tokenizer.json: is no byte-level BPE with a vocabulary and merges") from None
    return tokens, merges
