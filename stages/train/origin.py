"""What a run is made of, and what differs between two. No torch.

Every checkpoint holds it as run.json, equal for equal work and without a path:

    {"params": {"model": {..}, "train": {..}}, "data": {"train": "77c0..", "validation": "51aa..", "tokenizer": ".."},
     "code": {"stages.train.loop": {"settle": "ab12.."}}}

A training that begins with the checkpoint of another run (train.resume_from, `millrace resume`) is held against
it. What changes the function that is trained, or the order of its data, refuses: nothing of the run would mean
what it meant. Everything else is shown and goes on:

    param         in the checkpoint  now
    train.lr      0.02               0.01
    train.seed    0                  1      refused: it decides the order of the rows
    code          stages.train.loop: settle
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model.config import ModelConfig
from stages.entry import Job, plain
from stages.files import file_sha256
from stages.first_weights import FREE
from stages.train.params import TrainParams

RUN_FILE = "run.json"
ABSENT = "(none)"

REFUSED = {
    "train.batch_tokens": "it decides which rows a step has",
    "train.seed": "it decides the order of the rows",
    "train.objective": "it decides what is predicted",
    "train.optimizer": "its states are of another kind",
    "data.train": "these are other rows",
    "data.validation": "losses on other rows cannot be compared",
    "data.tokenizer": "ids mean other tokens",
}
MODEL_REFUSED = "it is part of the architecture"


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between a checkpoint and what is asked for now.

    Attributes:
        refused: why training cannot go on across it, or empty.
    """

    name: str
    then: Any
    now: Any
    refused: str = ""


def described(section: Any) -> dict[str, Any]:
    """A section as checkpoints have it: without the path of what resume_sha256 identifies."""
    return {key: value for key, value in plain(section).items() if key != "resume_from"}


def origin_of(job: Job) -> dict[str, Any]:
    """The content of run.json for a job of the stage train."""
    data = job.root / "data"
    indices = {split: data / "pack" / split / "index.json" for split in ("train", "validation")}
    fingerprint = data / "code" / f"{job.stage}.json"
    return {
        "params": {name: described(section) for name, section in sorted(job.sections.items())},
        "data": {
            **{split: file_sha256(path) for split, path in indices.items()},
            "tokenizer": json.loads(indices["train"].read_text(encoding="utf-8"))["tokenizer_sha256"],
        },
        "code": json.loads(fingerprint.read_text(encoding="utf-8"))["modules"] if fingerprint.exists() else {},
    }


def run_key(origin: Mapping[str, Any]) -> str:
    """Names the run in MLflow and in checkpoints, equally for equal work: params, data and code, and no path."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two run.json in params and data. A param that one of them does not know counts as it
    would by default: it came, or went, with another version."""
    defaults = {"model": plain(ModelConfig()), "train": plain(TrainParams())}
    found = []
    for section, default in defaults.items():
        old, new = (origin["params"].get(section, {}) for origin in (then, now))
        for key in [*new, *(key for key in old if key not in new)]:
            one, other = (values.get(key, default.get(key, ABSENT)) for values in (old, new))
            if one != other and key != "resume_sha256":
                found.append(Change(f"{section}.{key}", one, other, refusal(section, key)))
    for key, value in now["data"].items():
        if then["data"].get(key) != value:
            found.append(Change(f"data.{key}", then["data"].get(key, ABSENT), value, REFUSED[f"data.{key}"]))
    return found


def refusal(section: str, key: str) -> str:
    if section == "model" and key not in FREE:
        return MODEL_REFUSED
    return REFUSED.get(f"{section}.{key}", "")


def changed_code(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`stages.train.loop: settle, train` for each module with functions that differ, came or went."""
    old, new = then["code"], now["code"]
    if not old or not new:  # of a checkout without the stage `code`
        return []
    lines = []
    for module in sorted(old.keys() | new.keys()):
        before, after = old.get(module, {}), new.get(module, {})
        names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
        if names:
            lines.append(f"{module}: {', '.join(names)}")
    return lines


def table(found: Sequence[Change], code: Sequence[str]) -> Iterator[str]:
    """The differences for people, one a line."""
    rows = [("param", "in the checkpoint", "now", "")]
    for change in found:
        refused = f"refused: {change.refused}" if change.refused else ""
        rows.append((change.name, short(change.then), short(change.now), refused))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    if found:
        for row in rows:
            yield "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
    for line in code:
        yield f"code: {line}"


def short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def goes_on(found: Sequence[Change], step: int) -> bool:
    """Whether training with these changes is the same run, under the same MLflow run, and not a branch of it.

    It is while no param changes, and when a finished run is given more steps.
    """
    names = {change.name for change in found}
    finished = any(change.name == "train.max_steps" and change.then == step for change in found)
    return not names or (names == {"train.max_steps"} and finished)
