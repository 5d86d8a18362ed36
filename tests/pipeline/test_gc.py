"""`millrace gc`: what goes and what stays, on a repository with experiments and scratch."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from pipeline.cli import cli
from pipeline.gc import sharing_worktrees, why_not
from pipeline.locked import Locked
from pipeline.revisions import Revision, commit_of
from pipeline.smoke import alone_in
from stages.entry import PUBLISHED, Job
from stages.errors import BadInput
from tests.pipeline.ablation_repository import variables
from tests.pipeline.tiny_repository import command, dvc


@pytest.fixture
def used(abl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an experiment that is kept, and one that was given up."""
    monkeypatch.setenv("BEHAVIOUR", variables(abl)["BEHAVIOUR"])
    for name, value in (("kept", "0.5"), ("given-up", "0.25")):
        dvc(abl, "exp", "run", "--quiet", "--temp", "--name", name, "-S", f"train.lr={value}", "-S", "train.seed=7",
            *(["-S", "model.post_norm=true"] if name == "kept" else []), "evaluate")  # fmt: skip
    dvc(abl, "exp", "remove", "given-up")
    monkeypatch.chdir(abl)
    return abl


def cached(root: Path) -> set[Path]:
    return {path for path in (root / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_the_cache_keeps_what_something_kept_names(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = cached(used)
    cli.main(["gc", "--dry-run"], standalone_mode=False)
    said = capsys.readouterr().out
    assert cached(used) == before and "would be freed; nothing was removed" in said and "DVC cache: 0 files" not in said
    cli.main(["gc", "--yes"], standalone_mode=False)
    after = cached(used)
    assert after < before and f"DVC cache: {len(before - after)} files" in said
    kept = Revision.of(used, "kept")
    assert kept.json("data/evaluate/metrics.json")["bits_per_byte"] > 2.4 and kept.rows("data/train/loss.csv")
    shutil.rmtree(used / "data" / "train")
    dvc(used, "checkout", "--quiet")
    assert "up to date" in dvc(used, "status")
    capsys.readouterr()
    cli.main(["gc", "--dry-run"], standalone_mode=False)
    assert "nothing to free" in capsys.readouterr().out


def test_scratch_goes_when_it_is_done_or_old_and_nobody_works_there(
    abl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    base = abl / ".dvc" / "tmp" / "millrace"

    def folder(name: str, days: float = 0, published: bool = False) -> Path:
        path = base / "train" / name
        path.mkdir(parents=True)
        (path / "step").write_text("x" * 1000)
        if published:
            (path / PUBLISHED).touch()
        for each in (path / "step", path):
            os.utime(each, (time.time() - days * 86400,) * 2)
        return path

    old, new = folder("b" * 16, days=9), folder("c" * 16, days=2)
    dead = base / "worktrees" / "lr-1234567"
    dead.mkdir(parents=True)
    (base / "train" / "notes").mkdir()
    job = Job("train", abl)
    with job.scratch() as at_work:
        done = folder("a" * 16, published=True)
        (at_work / PUBLISHED).touch()  # of which another is still copying
        cli.main(["gc", "--yes"], standalone_mode=False)
        assert at_work.exists()
    said = capsys.readouterr().out
    assert "finished and published" in said and "unpublished, untouched for 9 days" in said
    assert [path.exists() for path in (done, old, new, dead, base / "train" / "notes")] == [
        False,
        False,
        True,
        False,
        True,
    ]
    cli.main(["gc", "--yes", "--days", "0"], standalone_mode=False)
    assert not new.exists()


def test_worktrees_that_share_the_cache_keep_theirs(abl: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    command(abl, "git", "worktree", "add", "--quiet", "--detach", str(beside))
    assert sharing_worktrees(abl) == []  # a cache of its own
    dvc(beside, "cache", "dir", "--local", str(abl / ".dvc" / "cache"))
    assert sharing_worktrees(abl) == [beside]


def test_of_a_scratch_elsewhere_only_folders_of_stages_go(
    abl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    monkeypatch.setattr("pipeline.gc.run_dvc_gc", lambda root, dry: "")
    elsewhere = tmp_path / "myscratch"
    monkeypatch.setenv("MILLRACE_EXECUTION__SCRATCH", str(elsewhere))
    ours = elsewhere / "train" / ("a" * 16)
    own = abl / ".dvc" / "tmp" / "millrace"
    desk, smoke = own / "worktrees" / "lr-1234567", own / "smoke"
    theirs = [elsewhere / name for name in ("worktrees/thesis", "ablations/x/desk", "smoke", "othertool/" + "0" * 16)]
    for folder in (ours, desk, smoke, *theirs):
        folder.mkdir(parents=True)
        (folder / PUBLISHED).write_text("x")
    cli.main(["gc", "--yes"], standalone_mode=False)
    said = capsys.readouterr().out
    assert str(ours) in said and not ours.exists() and not desk.exists() and not smoke.exists()
    assert all(folder.exists() for folder in theirs) and not any(str(folder) in said for folder in theirs)
    assert not list(elsewhere.glob("othertool/*.lock"))


def test_checkpoints_that_were_kept_to_branch_from_stay(
    abl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    monkeypatch.setattr("pipeline.gc.run_dvc_gc", lambda root, dry: "")
    folder = abl / ".dvc" / "tmp" / "millrace" / "train" / ("a" * 16)
    for step in (100, 200, 300):
        (folder / f"step-{step:08d}").mkdir(parents=True)
    (folder / "metrics.json").write_text('{"best_step": 200, "steps": 300}')
    (folder / PUBLISHED).touch()
    cli.main(["gc", "--yes"], standalone_mode=False)
    said = capsys.readouterr().out
    assert folder.exists() and "stays" in said and "step 100 are" in said and "millrace checkpoints prune aaaa" in said
    (folder / "step-00000100").rmdir()  # as prune does
    cli.main(["gc", "--yes"], standalone_mode=False)
    assert not folder.exists()


def test_a_cache_that_other_clones_may_need_is_left_alone(
    abl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    shared = tmp_path / "shared"
    shutil.copytree(abl / ".dvc" / "cache", shared)
    dvc(abl, "cache", "dir", "--local", str(shared))
    needed = shared / "files" / "md5" / "00" / ("1" * 30)  # by another clone
    needed.parent.mkdir(exist_ok=True)
    needed.write_text("theirs")
    with pytest.raises(BadInput, match="outside this repository.*--shared-cache"):
        cli.main(["gc", "--yes"], standalone_mode=False)
    cli.main(["gc", "--dry-run"], standalone_mode=False)
    assert needed.exists() and "this is refused now: the DVC cache" in capsys.readouterr().out
    cli.main(["gc", "--yes", "--shared-cache"], standalone_mode=False)
    assert not needed.exists()


def test_nothing_goes_while_an_experiment_is_at_work(abl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(abl)
    assert why_not(abl, False) == ""
    copy = abl / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    copy.mkdir(parents=True)
    with pytest.raises(BadInput, match="at work in .*tmpabc"):  # it has just begun
        cli.main(["gc", "--yes"], standalone_mode=False)
    os.utime(copy, (time.time() - 3600,) * 2)
    assert why_not(abl, False) == ""  # it was killed
    with psutil.Popen(["sleep", "60"], cwd=copy) as process:
        assert "tmpabc" in why_not(abl, False)
        process.kill()
    for name in ("worktrees/lr-1234567", "ablations/post-norm"):
        folder = abl / ".dvc" / "tmp" / "millrace" / name
        folder.mkdir(parents=True)
        with alone_in(folder):
            assert name in why_not(abl, False)
    assert why_not(abl, False) == ""


def test_registered_models_in_use_keep_their_files(
    abl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    monkeypatch.setenv("BEHAVIOUR", variables(abl)["BEHAVIOUR"])
    version = abl / ".dvc" / "tmp" / "millrace" / "mlflow-artifacts" / "model-1"
    (version / "provenance").mkdir(parents=True)
    committed = cached(abl)
    dvc(abl, "exp", "run", "--quiet", "--temp", "--name", "champion", "-S", "train.seed=9")
    lock = command(abl, "git", "show", f"{commit_of(abl, 'champion')}:dvc.lock")
    dvc(abl, "exp", "remove", "champion")
    (version / "provenance" / "dvc.lock").write_text(lock)
    made = cached(abl)
    assert made > committed
    with contextlib.closing(sqlite3.connect(version.parents[1] / "mlflow.db")) as database:
        database.execute("create table registered_model_aliases (alias, version, name)")
        database.execute("create table model_versions (name, version, source)")
        database.execute("insert into registered_model_aliases values ('champion', 1, 'millrace')")
        database.execute("insert into model_versions values ('millrace', 1, ?)", [version.as_uri()])
        database.commit()
    cli.main(["gc", "--yes"], standalone_mode=False)
    locked = Locked(abl, lock)
    named = [locked.entry(entry["md5"]) for stage in locked.stages for entry in locked.files(stage, "outs").values()]
    assert named and all(path.exists() for path in named) and cached(abl) == made
    shutil.rmtree(version)
    capsys.readouterr()
    cli.main(["gc", "--yes"], standalone_mode=False)
    assert "models:/millrace@champion (version 1): its dvc.lock cannot be read" in capsys.readouterr().out
    assert not all(path.exists() for path in named)
