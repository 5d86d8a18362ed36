"""Stops trainings in mid-run, in this process."""

import pytest

from stages.entry import Job
from stages.train import stage
from stages.train.hooks import Checkpoint
from stages.train.params import TrainParams
from tests.stages.test_train import MODEL


def interrupt_behind(monkeypatch: pytest.MonkeyPatch, job: Job, train: TrainParams, *steps: int) -> None:
    """Trains, and is stopped right behind the checkpoint of each of these steps, one run after another."""
    saved = Checkpoint.save
    for stop in steps:

        def save_and_fail(hook, run, stop=stop):
            saved(hook, run)
            if run.state.step == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoint, "save", save_and_fail)
        with job.scratch() as folder, pytest.raises(KeyboardInterrupt):
            stage.train_in(job, MODEL, train, folder)
    monkeypatch.setattr(Checkpoint, "save", saved)
