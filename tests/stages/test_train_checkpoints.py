"""What a training leaves on the disk while it goes on: which checkpoints, what they hold, and when."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.decoder import Decoder
from stages.checkpoint import problem_of
from stages.train.optimizers import Optimizers
from stages.train.parts import Stored
from stages.train.saving import Saver
from stages.train.state import Checkpoints, TrainState
from stages.train.worker import describe
from tests.stages.test_train import EXECUTION, MODEL, REPOSITORY, TRAIN, job_in, run_in

IDENTITY = {"run": "9f2c", "lineage": []}


class Averages:
    """A component as a hook would have it: one tensor."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def load(self, tensors: dict[str, Stored]) -> None:
        self.mean = tensors["mean"].whole()


def new_parts() -> tuple[Decoder, Optimizers]:
    model = Decoder(MODEL, 61, 16)
    return model, Optimizers(model, TRAIN)


def save(checkpoints: Checkpoints, state: TrainState, extra: dict | None = None, parts=None) -> None:
    model, optimizers = parts or new_parts()
    saver = Saver()
    checkpoints.save(saver, state, model, optimizers, {}, extra or {})
    saver.close()


def test_tensors_of_a_component_come_back_by_name(tmp_path: Path):
    model, optimizers = new_parts()
    checkpoints = Checkpoints(tmp_path, IDENTITY, {})
    written, read = Averages(), Averages()
    written.mean = torch.tensor([1.0, 2.0, 3.0])
    save(checkpoints, TrainState(step=4), {"averages": written})
    folder = checkpoints.newest()
    assert folder is not None and (folder / "averages.safetensors").exists() and problem_of(folder) is None
    assert checkpoints.load(folder, model, optimizers, {"averages": read}) == TrainState(step=4)
    assert torch.equal(read.mean, written.mean)


def test_a_component_that_the_checkpoint_does_not_hold_stays_as_it_was_built(tmp_path: Path):
    model, optimizers = new_parts()
    checkpoints = Checkpoints(tmp_path, IDENTITY, {})
    save(checkpoints, TrainState())
    averages = Averages()
    checkpoints.load(checkpoints.path(0), model, optimizers, {"averages": averages})
    assert torch.equal(averages.mean, torch.zeros(3))


def test_the_newest_and_the_best_stay(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, IDENTITY, {}, keep=2)
    parts = new_parts()
    for step, best in ((0, 0), (10, 0), (20, 20), (30, 20), (40, 20), (50, 20)):
        save(checkpoints, TrainState(step=step, best_step=best), parts=parts)
    assert checkpoints.steps() == [20, 40, 50]


def test_a_damaged_checkpoint_is_not_counted_among_the_newest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, IDENTITY, {}, keep=2)
    parts = new_parts()
    for step in (10, 20, 30):
        save(checkpoints, TrainState(step=step, best_step=0), parts=parts)
    (checkpoints.path(30) / "model.safetensors").write_bytes(b"cut off")
    save(checkpoints, TrainState(step=40, best_step=0), parts=parts)
    assert checkpoints.steps() == [20, 40]


def test_what_is_saved_are_the_tensors_of_that_moment(tmp_path: Path):
    """The training goes on while the thread writes."""
    model, optimizers = new_parts()
    saver = Saver()
    checkpoints = Checkpoints(tmp_path, IDENTITY, {}, keep=9)
    with torch.no_grad():
        for step in range(5):
            for parameter in model.parameters():
                parameter.fill_(step)
            checkpoints.save(saver, TrainState(step=step), model, optimizers, {}, {})
            for parameter in model.parameters():
                parameter.fill_(-1)
    saver.close()
    for step in range(5):
        checkpoints.load(checkpoints.path(step), model, optimizers, {})
        assert all(bool((parameter == step).all()) for parameter in model.parameters())


def test_what_the_disk_refuses_is_raised_at_the_next_step_and_the_one_before_stays(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, IDENTITY, {})
    model, optimizers = new_parts()
    saver = Saver()
    checkpoints.save(saver, TrainState(step=10), model, optimizers, {}, {})
    saver.wait()
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        checkpoints.save(saver, TrainState(step=20), model, optimizers, {}, {})
        with pytest.raises(OSError, match="File too large"):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert checkpoints.newest() == checkpoints.path(10)
    saver.close()


SMALL_DISK = """
mount -t tmpfs -o size=$1 none $2 || exit 77
cp $3 $2/job.json
"$4" -m stages.train.worker $2/job.json
code=$?
cp -r $2/. $5
exit $code
"""


def test_a_disk_that_fills_during_a_save_leaves_the_checkpoint_before_it_good(packed: Path, tmp_path_factory):
    """On a file system with room for one checkpoint and a half; with more room the same work goes on."""
    train = TRAIN.model_copy(update={"max_steps": 8, "eval_interval": 100})
    expected = (run_in(packed, train) / "last/manifest.json").read_bytes()
    size = sum(path.stat().st_size for path in (packed / "data/train/last").iterdir())
    disk, rescued = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("rescued")
    execution = EXECUTION.model_copy(update={"scratch": str(rescued), "checkpoint_interval": 5})
    job = job_in(packed, train, execution)
    with job.scratch() as folder:
        pass
    (rescued / "job.json").write_text(describe(job, disk))
    arguments = [str(size * 3 // 2), str(disk), str(rescued / "job.json"), sys.executable, str(folder)]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if ended.returncode == 77 or "unshare" in ended.stderr:
        pytest.skip("no file system can be mounted here")
    reason = json.loads((folder / "outcome-0.json").read_text())["message"]
    assert ended.returncode == 1 and reason.startswith("the disk is full"), ended.stderr
    assert [path.name for path in folder.glob("step-*")] == ["step-00000000"]
    resumed = run_in(packed, train, execution)
    assert (resumed / "last/manifest.json").read_bytes() == expected
