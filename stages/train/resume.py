"""A training that begins with the checkpoint of another run: `train.resume_from`, `millrace resume`.

The checkpoint becomes the first one of the new scratch folder: the same tensors, as hard links, under a state.json
that says where it comes from. From there the run goes on as after any interruption, so a branch that was killed
needs its source no more.

    step-00000100 of run 9f2c..  ->  NEW/step-00000100   {"run": .., "lineage": [{"run": "9f2c..", "step": 100, ..}]}
                                     NEW/loss.csv, NEW/training.log   the lines up to step 100

Where no param changed, or a finished run gets more steps, it is the same run and goes on in its MLflow run; else it
is a branch, a run of its own.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.checkpoint import (
    MANIFEST,
    folder_of,
    named,
    partial_of,
    problem_of,
    read_json,
    seal,
    wrong_sha256,
)
from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.progress import say
from stages.store import link_file
from stages.tracking import Run
from stages.train.journal import TABLES
from stages.train.origin import RUN_FILE, Change, changed_code, changes, goes_on, origin_of, run_key, table
from stages.train.params import NOT_THERE, TrainParams, run_and_step

BESIDE = ("training.log", "monitor")  # the checkpoints of a run; nothing depends on them


def begin_from(source: Path, folder: Path, job: Job, keep_best: bool = False) -> None:
    """Makes the checkpoint the first one of `folder`, if the work of `job` may go on from it.

    Args:
        keep_best: take the best checkpoint over, which stands beside it. Without, the best one is the best from
            this step on: an earlier one may be gone, and is no part of what the sha256 of the source identifies.

    Raises:
        BadInput: it is damaged, or the params or data of `job` change the function or the order of rows.
    """
    if problem := problem_of(source):
        raise BadInput(f"{problem}; take another checkpoint (`millrace checkpoints`)")
    state, now = read_json(source, "state.json"), origin_of(job)
    then = read_json(source, RUN_FILE)
    found, code = changes(then, now), changed_code(then, now)
    say(f"train: begins with step {state['step']} of run {state['run']}")
    for line in table(found, code):
        say(f"  {line}")
    refuse(found, state["step"], job.sections["train"])
    beside = partial_of(folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    if keep_best and state["best_step"] != state["step"]:
        copy_checkpoint(folder_of(source.parent, state["best_step"]), folder_of(beside, state["best_step"]), {})
    elif state["best_step"] != state["step"]:
        state |= {"best_step": state["step"], "best_validation_loss": state["validation_loss"]}
    state["lineage"] = [*state["lineage"], lineage(source, state, found, code)]
    if not goes_on(found, state["step"]):
        state["run"] = run_key(now)
    copy_checkpoint(source, folder_of(beside, state["step"]), {"state.json": state, RUN_FILE: now})
    for name in TABLES:
        if (source / name).exists():
            shutil.copyfile(source / name, beside / name)
    copy_logs(source.parent, beside)
    shutil.rmtree(folder, ignore_errors=True)  # it holds no checkpoint
    beside.rename(folder)


def refuse(found: Sequence[Change], step: int, train: TrainParams) -> None:
    """Raises BadInput with the first change that the checkpoint cannot be continued across."""
    for change in found:
        if change.refused:
            raise BadInput(
                f"the checkpoint cannot be continued: {change.name} was {change.then} and is {change.now}, and "
                f"{change.refused}; set it back, or start a new run"
            )
    if step > train.max_steps:
        raise BadInput(f"the checkpoint is of step {step}; set train.max_steps, now {train.max_steps}, to more")


def lineage(source: Path, state: dict[str, Any], found: Sequence[Change], code: Sequence[str]) -> dict[str, Any]:
    """What a state.json says about where it comes from."""
    return {
        "run": state["run"],
        "step": state["step"],
        "manifest_sha256": file_sha256(source / MANIFEST),
        "changed": {change.name: [change.then, change.now] for change in found},
        "code": list(code),
    }


def copy_checkpoint(source: Path, target: Path, changed: dict[str, Any]) -> None:
    """The same checkpoint under another name, its files linked, but for the JSON files of `changed`."""
    beside = partial_of(target)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != MANIFEST and path.name not in changed:
            link_file(path, beside / path.name)
    for name, content in changed.items():
        write_json(beside / name, content)
    seal(target)


def copy_logs(source: Path, target: Path) -> None:
    """Those beside a checkpoint, as far as they are there; later lines go when training starts."""
    for name in BESIDE:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).exists():
            shutil.copyfile(source / name, target / name)


def send_history(losses: Path, last_step: int, interval: int, tracked: Run) -> None:
    """Gives the MLflow run of a branch the curves up to where it stands, at the steps at which a log line is due."""
    with losses.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            if step <= last_step and (step % interval == 0 or row["validation_loss"]):
                values = {name: float(text) for name, text in row.items() if text}
                tracked.metrics(step, {name: value for name, value in values.items() if math.isfinite(value)})


def find_source(job: Job, train: TrainParams) -> Path:
    """The checkpoint folder that `train.resume_from` names.

    Raises:
        BadInput: it is not there, or is not the one of `train.resume_sha256`.
    """
    if run := run_and_step(train.resume_from):
        folders = list(of_mlflow_run(job, *run))
    else:
        folders = [found for found in (named(train.resume_from, job.root),) if found]
    if not folders:
        raise BadInput(f"params.yaml: train.resume_from: {train.resume_from}: {NOT_THERE}")
    problems = {folder: wrong_sha256(folder, train.resume_sha256) for folder in folders}
    if right := next((folder for folder, problem in problems.items() if problem is None), None):
        return right
    raise BadInput(f"params.yaml: train.resume_sha256: {problems[folders[0]]}")


def of_mlflow_run(job: Job, run_id: str, step: int) -> Iterator[Path]:
    """The checkpoints on this disk that an MLflow run wrote at a step: in any scratch folder, or published."""
    key = mlflow_key(job, run_id)
    published = [job.out / name for name in ("best", "last")]
    for folder in [*job.scratch_base.glob(f"*/step-{step:08d}"), *published]:
        if (folder / MANIFEST).is_file() and (folder / "state.json").is_file():
            state = read_json(folder, "state.json")
            if state["run"] == key and state["step"] == step:
                yield folder


def mlflow_key(job: Job, run_id: str) -> str:
    """Our own key of an MLflow run, which its checkpoints hold."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from stages.mlflow_store import RUN_KEY
    from stages.tracking import store_address

    uri, _ = store_address(job)
    try:
        tags = MlflowClient(uri).get_run(run_id).data.tags
    except MlflowException as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"params.yaml: train.resume_from: MLflow at {uri} has no run {run_id} ({reason})") from None
    if RUN_KEY not in tags:
        raise BadInput(f"params.yaml: train.resume_from: run {run_id} at {uri} is none of this pipeline")
    return str(tags[RUN_KEY])
