"""millrace resume: a run goes on across a mended function, after the change was shown and accepted."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.resume import adopt
from stages.checkpoint import checkpoints_in
from stages.code.stage import fingerprint
from stages.entry import prepare_job
from stages.errors import BadInput, Stopped
from stages.files import write_json
from stages.fingerprint.imports import Project
from stages.train import hooks, stage
from tests.pipeline.test_checkpoints import REPOSITORY, millrace, write_params
from tests.stages.conftest import packed  # noqa: F401  a fixture

FILES = ("loss.csv", "last/model.safetensors", "last/optimizer.safetensors", "metrics.json")


def train(root: Path, stop_at: int = 0) -> None:
    """The stage as `python -m stages.train` runs it, stopped after a step by a signal."""
    after_step = hooks.Checkpoint.after_step

    def stop(self, run, result):
        after_step(self, run, result)
        if run.state.step == stop_at:
            self.saver.wait()
            raise Stopped("here")

    job = prepare_job("train", stage.run, root)
    job.prepare()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hooks.Checkpoint, "after_step", stop)
        stage.run(job, **job.sections)
    job.publish()


@pytest.fixture
def workspace(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Packed data, params, the graph, and a copy of the code with its fingerprint."""
    for name in ("model", "stages"):
        shutil.copytree(REPOSITORY / name, packed / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dvc.yaml", packed)
    write_params(packed)
    take_fingerprint(packed)
    monkeypatch.chdir(packed)
    return packed


def take_fingerprint(root: Path) -> None:
    (root / "data/code").mkdir(exist_ok=True)
    write_json(root / "data/code/train.json", fingerprint(Project(root), "train"))


def mend(root: Path) -> None:
    path = root / "stages/train/schedule.py"
    path.write_text(path.read_text() + "\n\nMENDED = True\n")


def interrupted_run(root: Path) -> Path:
    """Trains to the end and keeps what came out as expected; then again, to step 8."""
    train(root)
    (root / "expected").mkdir()
    for name in FILES:
        shutil.copy(root / "data/train" / name, root / "expected" / Path(name).name)
    scratch = root / ".dvc/tmp/millrace/train"
    shutil.rmtree(scratch)
    with pytest.raises(Stopped):
        train(root, stop_at=8)
    (folder,) = (path for path in scratch.iterdir() if path.is_dir())
    return folder


def test_it_shows_what_has_changed_and_refuses_until_that_is_accepted(workspace, capsys, monkeypatch):
    old = interrupted_run(workspace)
    mend(workspace)
    code, said = millrace(capsys, monkeypatch, "resume", old.name[:8])
    assert code == 2 and "code: stages.train.schedule: <module>" in said and "--accept" in said
    assert [path.name for path in old.parent.iterdir() if path.is_dir()] == [old.name]
    write_params(workspace, seed=3)
    code, said = millrace(capsys, monkeypatch, "resume", old.name, "--accept")
    assert code == 2 and "train.seed was 0 and is 3" in said


def test_it_goes_on_as_if_the_mended_code_had_always_been_there(workspace):
    old = interrupted_run(workspace)
    mend(workspace)
    take_fingerprint(workspace)
    adopt(workspace, old)
    (new,) = (path for path in old.parent.iterdir() if path.is_dir() and path != old)
    assert max(checkpoints_in(new)) == max(checkpoints_in(old)) == 8
    train(workspace)
    for name in FILES:
        assert (workspace / "data/train" / name).read_bytes() == (workspace / "expected" / Path(name).name).read_bytes()
    state, before = (json.loads((folder / "state.json").read_text()) for folder in
                     (workspace / "data/train/last", checkpoints_in(old)[8]))  # fmt: skip
    assert state["run"] == before["run"]
    assert [(past["step"], past["changed"], past["code"]) for past in state["lineage"]] == [
        (8, {}, ["stages.train.schedule: <module>"])
    ]


def test_a_run_of_the_present_code_is_not_overwritten(workspace):
    old = interrupted_run(workspace)
    mend(workspace)
    take_fingerprint(workspace)
    with pytest.raises(Stopped):
        train(workspace, stop_at=4)
    with pytest.raises(BadInput, match="have a run of their own, at step 4"):
        adopt(workspace, old)
