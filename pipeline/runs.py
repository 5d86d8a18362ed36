"""The checkpoints on this disk: of every run in scratch, and those that the stage train published.

    .dvc/tmp/millrace/train/21ee1a441d1f3619/step-00000100    run 21ee1a441d1f3619, step 100
    data/train/best                                           published

A run is told by the name of its scratch folder, or the beginning of it. Of each run the newest whole checkpoint and
the best one up to there are what it needs to go on; all others can be pruned.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.checkpoint import MANIFEST, checkpoints_in, is_complete
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.files import file_sha256
from stages.locks import exclusive
from stages.params import ParamsFile
from stages.train.origin import RUN_FILE, changed_code, changes, described

PUBLISHED = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Saved:
    """One checkpoint.

    Attributes:
        run: the name of its scratch folder, or data/train/best and last.
        role: newest, best, both or none of them, among the whole checkpoints of its run.
        whole: every file is there in its size (`verify` reads them).
        differs: params that differ from params.yaml, with the values of the checkpoint; `code` where functions do.
    """

    run: str
    path: Path
    step: int
    role: str
    whole: bool
    bytes: int
    tokens: int | None
    validation_loss: float | None
    manifest_sha256: str | None
    differs: dict[str, Any]


def train_job(root: Path) -> Job:
    """The stage train as params.yaml has it; its inputs need not be there."""
    from model.config import ModelConfig
    from stages.train.params import TrainParams

    params = ParamsFile(root / "params.yaml")
    sections = {"model": params.section("model", ModelConfig), "train": params.section("train", TrainParams)}
    return Job("train", root, params.section("execution", Execution), (), sections)


def saved_checkpoints(job: Job) -> list[Saved]:
    """All of them: runs by name, then published ones, each by step."""
    now = present(job)
    found = []
    for folder in runs_in(job):
        steps = checkpoints_in(folder)
        roles = roles_of(steps)
        found += [saved(folder.name, path, step, roles.get(step, ""), now) for step, path in steps.items()]
    for name in PUBLISHED:
        path = job.out / name
        if path.is_dir():
            state = read(path / "state.json")
            found.append(saved(f"data/train/{name}", path, state.get("step", 0), "published", now))
    return found


def runs_in(job: Job) -> list[Path]:
    """The scratch folders with a checkpoint."""
    return [
        folder for folder in sorted(job.scratch_base.glob("*")) if "." not in folder.name and checkpoints_in(folder)
    ]


def run_named(job: Job, name: str) -> Path:
    """The scratch folder whose name begins so.

    Raises:
        BadInput: there is none, or more than one.
    """
    runs = runs_in(job)
    fitting = [folder for folder in runs if folder.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(folder.name for folder in fitting or runs) or "none"
    raise BadInput(f"{name}: {'several runs begin so' if fitting else 'no run in scratch'}; there are {names}")


def roles_of(steps: dict[int, Path]) -> dict[int, str]:
    """Which of the checkpoints of a run is the newest whole one, and which the best up to there."""
    newest = next((step for step in reversed(steps) if is_complete(steps[step])), None)
    if newest is None:
        return {}
    best = int(read(steps[newest] / "state.json").get("best_step", newest))
    return {best: "best", newest: "newest, best" if newest == best else "newest"}


def present(job: Job) -> dict[str, Any]:
    """run.json as it would be now, but for the data."""
    fingerprint = read(job.root / "data" / "code" / "train.json")
    params = {name: described(section) for name, section in job.sections.items()}
    return {"params": params, "data": {}, "code": fingerprint.get("modules", {})}


def saved(run: str, path: Path, step: int, role: str, now: dict[str, Any]) -> Saved:
    state, then = read(path / "state.json"), read(path / RUN_FILE)
    differs: dict[str, Any] = {}
    if then:
        differs = {change.name: change.then for change in changes(then, now)}
        if code := changed_code(then, now):
            differs["code"] = code
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    manifest = path / MANIFEST
    return Saved(
        run, path, step, role, is_complete(path), size, state.get("tokens"), state.get("validation_loss"),
        file_sha256(manifest) if manifest.is_file() else None, differs,
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def needless(runs: Iterable[Path]) -> Iterator[Path]:
    """What the runs do not need to go on: checkpoints that are neither newest nor best, and halves of some."""
    for folder in runs:
        steps = checkpoints_in(folder)
        roles = roles_of(steps)
        yield from (path for step, path in steps.items() if step not in roles)
        yield from sorted(folder.glob("step-*.partial"))


def remove(folders: Iterable[Path]) -> list[Path]:
    """Removes checkpoints, but for those of runs that are being worked in: these it returns."""
    left = []
    for folder in folders:
        with exclusive(folder.parent) as free:
            if free:
                shutil.rmtree(folder)
            else:
                left.append(folder)
    return left
