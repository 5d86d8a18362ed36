"""Trains the model on packed rows and publishes its best and its last checkpoint.

The work happens in a scratch folder named by a digest of params, data and code. A run that was killed,
at any moment and by anything, goes on there from its last checkpoint when the same command is given
again, and ends with the same bytes as if nothing had happened. A change of params, data or code is
another digest, and starts afresh.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model.config import ModelConfig
from stages.checkpoint import checkpoints_in, folder_of, problem_of
from stages.devices import own_gpus
from stages.entry import Job
from stages.errors import Failed
from stages.progress import say
from stages.train.journal import HEADER, PROBES
from stages.train.launch import launch
from stages.train.nodes import lead
from stages.train.params import TrainParams
from stages.train.parts import publish
from stages.train.resume import begin_from, find_source
from stages.train.worker import work

# Of the folder monitor/; what else lies there, a trace or a memory snapshot, is large and stays in scratch.
MONITOR = ("curves.html", "spikes.jsonl", "samples.jsonl")


def run(job: Job, model: ModelConfig, train: TrainParams) -> None:
    # a finished run that kept several checkpoints is there to be branched from
    with job.scratch(keep_published=bool(train.resume_from) or job.execution.keep_checkpoints > 1) as folder:
        if (folder / "finished").exists():
            say(f"train: a run of the same params, data and code has ended here; taken from scratch, {folder}")
            if job.execution.launcher == "environment":
                lead(job, None)
        else:
            if train.resume_from and not checkpoints_in(folder):
                begin_from(find_source(job, train), folder, job)
            train_in(job, model, train, folder)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if metrics["best_validation_loss"] is None:
            raise Failed("no validation loss was finite; lower train.lr and train.muon_lr")
        for step in {metrics["best_step"], metrics["steps"]}:
            problem = problem_of(folder_of(folder, step))
            if problem:
                raise Failed(f"{problem}; remove {folder} and run `dvc repro train` again")
        publish(folder_of(folder, metrics["best_step"]), job.staging / "best")
        publish(folder_of(folder, metrics["steps"]), job.staging / "last")
        for name in ("metrics.json", "timing.json", "loss.csv", "training.log"):
            shutil.copyfile(folder / name, job.staging / name)
        copy_probes(folder, job.staging)
        (job.staging / "monitor").mkdir()
        for path in (folder / "monitor" / name for name in MONITOR):
            if path.exists():
                shutil.copyfile(path, job.staging / "monitor" / path.name)
        (folder / "finished").touch()


def train_in(job: Job, model: ModelConfig, train: TrainParams, folder: Path) -> None:
    if job.execution.launcher == "environment":
        lead(job, folder)
        work(job, model, train, folder, launched=True)
        return
    with own_gpus(job, job.execution.n_processes):
        if job.execution.n_processes == 1:
            work(job, model, train, folder)
        else:
            launch(job, folder)


def copy_probes(folder: Path, staging: Path) -> None:
    """A training without probes has a table without rows."""
    rows = (folder / PROBES).read_text(encoding="utf-8") if (folder / PROBES).exists() else HEADER
    (staging / PROBES).write_text(rows, encoding="utf-8")
