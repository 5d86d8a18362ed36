"""millrace checkpoints: lists, verifies, prunes; and what it prints is what params.yaml needs."""

import fcntl
import json
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import cli
from stages.checkpoint import checkpoints_in
from stages.entry import plain
from tests.stages.conftest import packed  # noqa: F401  a fixture
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, job_in, run_in

REPOSITORY = Path(__file__).parents[2]
KEEPING = EXECUTION.model_copy(update={"keep_checkpoints": 9, "checkpoint_interval": 4})


@pytest.fixture
def trained(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A workspace with a finished run of 12 steps that kept its checkpoints 0, 4, 8, 12."""
    run_in(packed, TRAIN, KEEPING)
    shutil.copy(REPOSITORY / "dvc.yaml", packed)
    write_params(packed)
    monkeypatch.chdir(packed)
    return packed


def write_params(root: Path, **train: object) -> None:
    sections = {"model": plain(MODEL), "train": {**plain(TRAIN), **train}, "execution": plain(KEEPING)}
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(sections, file)


def scratch(root: Path) -> Path:
    with job_in(root, TRAIN, KEEPING).scratch(keep_published=True) as folder:
        return folder


def millrace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["millrace", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_lists_runs_in_scratch_and_published_ones(trained, capsys, monkeypatch):
    write_params(trained, lr=0.5)
    code, said = millrace(capsys, monkeypatch, "checkpoints", "--json")
    found = json.loads(said[said.index("[\n") :])
    run = scratch(trained).name
    assert code == 0
    assert [(one["run"], one["step"]) for one in found] == [
        *((run, step) for step in (0, 4, 8, 12)), ("data/train/best", 12), ("data/train/last", 12),
    ]  # fmt: skip
    assert [one["role"] for one in found] == ["", "", "", "newest, best", "published", "published"]
    assert all(one["whole"] and one["differs"] == {"train.lr": 0.02} for one in found)
    assert found[3]["tokens"] == json.loads((trained / "data/train/metrics.json").read_text())["tokens"]
    assert millrace(capsys, monkeypatch, "checkpoints")[1].count("train.lr 0.02") == 6


def test_show_prints_what_params_need_and_what_would_change(trained, capsys, monkeypatch):
    write_params(trained, seed=3)
    code, said = millrace(capsys, monkeypatch, "checkpoints", "show", scratch(trained).name[:6], "8")
    lines = dict(line.split(": ") for line in said.splitlines() if line.startswith("  train.resume"))
    source = trained / lines["  train.resume_from"]
    assert code == 0 and source == checkpoints_in(scratch(trained))[8]
    assert "refused: it decides the order of the rows" in said
    write_params(trained, resume_from=str(source), resume_sha256=lines["  train.resume_sha256"])
    assert millrace(capsys, monkeypatch, "checkpoints", "show", "zzz")[0] == 2


def test_verify_reads_every_byte(trained, capsys, monkeypatch):
    assert millrace(capsys, monkeypatch, "checkpoints", "verify")[0] == 0
    damaged = checkpoints_in(scratch(trained))[4] / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    code, said = millrace(capsys, monkeypatch, "checkpoints", "verify")
    assert code == 1 and said.count("differs from its checksum") == 1


def test_prune_keeps_newest_and_best_and_asks(trained, capsys, monkeypatch):
    folder = scratch(trained)
    (folder / "step-00000016.partial").mkdir()
    monkeypatch.setattr("click.confirm", lambda *arguments, **named: (_ for _ in ()).throw(KeyboardInterrupt))
    assert millrace(capsys, monkeypatch, "checkpoints", "prune")[0] == 130
    assert [*checkpoints_in(folder)] == [0, 4, 8, 12]
    with (folder.parent / f"{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being trained" in millrace(capsys, monkeypatch, "checkpoints", "prune", "--yes")[1]
    assert millrace(capsys, monkeypatch, "checkpoints", "prune", "--yes")[0] == 0
    assert [*checkpoints_in(folder)] == [12] and not (folder / "step-00000016.partial").exists()
    assert "nothing to remove" in millrace(capsys, monkeypatch, "checkpoints", "prune", "--yes")[1]
