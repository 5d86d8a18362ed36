"""`millrace promote` in a tiny repository under git and DVC, and the way back from a registered model."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli import cli
from stages.errors import BadInput
from tests.pipeline.model_repository import command, dvc, millrace, set_lr, start_millrace, write_model_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion, registered by `dvc repro` with params that no commit has."""
    root = write_model_repository(tmp_path_factory.mktemp("models") / "repository")
    set_lr(root, 2)
    (root / "stages" / "mine.py").write_bytes("NEW = 'known to no commit, and not in UTF-8: é'\n".encode("latin-1"))
    dvc(root, "repro", MLFLOW_TRACKING_URI="")
    return root


@pytest.fixture
def client(repository: Path) -> Iterator[object]:
    from mlflow import MlflowClient

    yield MlflowClient(f"sqlite:///{repository}/.dvc/tmp/millrace/mlflow.db")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_registered_model_leads_back_to_the_workspace_that_made_it(repository: Path, client, tmp_path: Path) -> None:
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["git_dirty"] == "true"
    set_lr(repository, 5)  # the workspace has gone on
    back = tmp_path / "back"
    try:
        # what the version's own description tells
        command(repository, "git", "worktree", "add", "--detach", str(back), version.tags["git_commit"])
        place = f"{Path(version.source).name}/provenance"
        files = Path(client.download_artifacts(version.run_id, place, str(tmp_path)))
        command(back, "git", "apply", "--allow-empty", str(files / "changes.patch"))
        shutil.copy(files / "dvc.lock", back)
        dvc(back, "cache", "dir", "--local", str(repository / ".dvc" / "cache"))
        dvc(back, "checkout", "--quiet")
    finally:
        set_lr(repository, 2)
    assert "lr: 2" in (back / "params.yaml").read_text()
    assert (back / "stages" / "mine.py").exists()
    assert sha256(back / "data/export/manifest.json") == version.tags["manifest_sha256"]
    assert (back / "data/export/hf/model.safetensors").read_text() == "weights 2"
    assert json.loads((back / "data/train/best/state.json").read_text())["run"] == version.tags["train_digest"]
    assert json.loads(dvc(back, "status", "--json")) == {}  # DVC finds the lock as it would have written it


@pytest.fixture
def promote(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., dict]:
    """The command in this process, which has loaded MLflow; its answer, read from JSON."""
    monkeypatch.chdir(repository)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str) -> dict:
        capsys.readouterr()
        cli.main(["promote", "--json", *arguments], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return call


def test_what_was_not_registered_is_registered_later_from_data_and_once_and_then_competes(
    repository: Path, client, promote: Callable[..., dict]
) -> None:
    set_lr(repository, 1)
    dvc(repository, "repro", TINY_TRACKING="off", MLFLOW_TRACKING_URI="")  # as if the server were down
    both = [start_millrace(repository, "promote", "--json") for _ in range(2)]  # they wait for each other
    outcomes = [json.loads(process.communicate()[0]) for process in both]
    (outcome,) = [one for one in outcomes if one["new"]]
    assert {**outcome, "new": False} in outcomes
    assert outcome["champion"] and "over 30 documents, -0.0010 to -0.0010" in outcome["reason"]
    assert promote() == promote("--latest") == {**outcome, "new": False}
    version = client.get_model_version("tiny", outcome["version"])
    run = client.get_run(version.run_id)
    assert run.data.tags["millrace.run"] == "lr-1" and run.data.metrics["bits_per_byte"] == pytest.approx(2.951)
    assert [point.step for point in client.get_metric_history(version.run_id, "loss")] == [0, 10]

    lost = promote("1")
    assert not lost["champion"] and lost["reason"].endswith("+0.0010 to +0.0010, is not below 0")
    assert str(client.get_registered_model("tiny").aliases["challenger"]) == "1"
    forced = promote("1", "--force-reason", "half the size")
    assert forced["champion"] and forced["reason"].startswith("by a person: half the size (the rule: 2.9520 bits per")
    assert client.get_model_version_by_alias("tiny", "champion").tags["promotion"] == f"champion: {forced['reason']}"
    with pytest.raises(BadInput, match="tiny: no version 99; there are 1 to 2"):
        promote("99")
    with pytest.raises(BadInput, match="give a VERSION or --latest, not both"):
        promote("1", "--latest")


def test_an_export_that_is_not_the_one_of_dvc_lock_is_not_registered(
    repository: Path, tmp_path: Path, promote: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(copy)
    weights = copy / "data/export/hf/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(before + b"!")
    with pytest.raises(BadInput, match="hf/model.safetensors: is not the file of its manifest.json; run `dvc"):
        promote()
    weights.unlink()
    with pytest.raises(BadInput, match="hf/model.safetensors: not there"):
        promote()
    weights.write_bytes(before)
    (copy / "data/export/hf/more.py").write_text("")
    with pytest.raises(BadInput, match="data/export/hf/more.py: is no file of its manifest.json"):
        promote()
    (copy / "data/export/hf/more.py").unlink()
    manifest = copy / "data/export/manifest.json"
    manifest.unlink()
    manifest.write_text("{}")
    with pytest.raises(BadInput, match="data/export/manifest.json: not the file that dvc.lock names"):
        promote()
    shutil.rmtree(copy / "data/export")
    with pytest.raises(BadInput, match="`dvc pull export evaluate` or `dvc repro export` brings it"):
        promote()


def test_a_server_that_is_down_is_one_line_and_leaves_nothing_behind(repository: Path) -> None:
    told = millrace(repository, "promote", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("millrace: MLflow: http://127.0.0.1:9 cannot be used: ")
    assert told.stderr.count("\n") == 1
    assert not list((repository / ".dvc/tmp/millrace").glob("unsent/*"))


def test_its_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv[1:] = ['promote', '--help']; from pipeline.cli import main\ntry: main()\nexcept: pass\n"
    )
    heavy = "print(sorted({'mlflow', 'torch', 'numpy', 'pydantic', 'dvc', 'prefect'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program + heavy], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
