"""`millrace promote` in a tiny repository under git and DVC, and the way back from a registered model."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.model_repository import command, dvc, millrace, set_lr, write_model_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion, registered by `dvc repro` with params that no commit has."""
    root = write_model_repository(tmp_path_factory.mktemp("models") / "repository")
    set_lr(root, 2)
    (root / "stages" / "mine.py").write_text("NEW = 'known to no commit'\n")
    dvc(root, "repro")
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


def test_what_was_not_registered_is_registered_later_from_data_alone_and_once(repository: Path, client) -> None:
    set_lr(repository, 1)
    (repository / "params.yaml").write_text((repository / "params.yaml").read_text())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TINY_TRACKING", "off")  # as if the server were down
        dvc(repository, "repro")
    first, again = millrace(repository, "promote", "--json"), millrace(repository, "promote", "--json")
    assert first.returncode == again.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert outcome["new"] and outcome["champion"] and "over 30 documents, -0.0010 to -0.0010" in outcome["reason"]
    assert json.loads(again.stdout) == {**outcome, "new": False}
    version = client.get_model_version("tiny", outcome["version"])
    run = client.get_run(version.run_id)
    assert run.data.tags["millrace.run"] == "lr-1" and run.data.metrics["bits_per_byte"] == pytest.approx(2.951)
    assert [point.step for point in client.get_metric_history(version.run_id, "loss")] == [0, 10]


def test_promote_takes_a_version_or_the_latest_and_a_reason(repository: Path, client) -> None:
    told = millrace(repository, "promote", "--latest")
    latest = max(int(version.version) for version in client.search_model_versions("name = 'tiny'"))
    assert told.stdout.startswith(f"tiny version {latest} (known already); champion: ")
    lost = json.loads(millrace(repository, "promote", "1", "--json").stdout)
    if latest > 1:
        assert not lost["champion"] and "is not below 0" in lost["reason"]
        assert str(client.get_registered_model("tiny").aliases["challenger"]) == "1"
    forced = json.loads(millrace(repository, "promote", "1", "--force-reason", "half the size", "--json").stdout)
    assert forced["champion"] and forced["reason"].startswith("by a person: half the size")
    assert client.get_model_version_by_alias("tiny", "champion").tags["promotion"].startswith("champion: by a person")


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        (["promote", "99"], {}, 2, "millrace: tiny: no version 99; there are 1 to"),
        (["promote", "1", "--latest"], {}, 2, "millrace: give a VERSION or --latest, not both"),
        (["promote"], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, 1, "millrace: MLflow: http://127.0.0.1:9 cannot"),
        (["promote"], {"MILLRACE_EXECUTION__TRACKING": "false"}, 2, "millrace: execution.tracking is false"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    repository: Path, arguments: list[str], variables: dict[str, str], code: int, said: str
) -> None:
    told = millrace(repository, *arguments, **variables)
    assert (told.returncode, told.stdout) == (code, "")
    assert told.stderr.startswith(said) and told.stderr.count("\n") == 1


def test_an_export_that_is_not_the_one_of_dvc_lock_is_not_registered(repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    manifest = copy / "data/export/manifest.json"
    manifest.unlink()
    manifest.write_text("{}")
    told = millrace(copy, "promote")
    assert told.returncode == 2 and "data/export/manifest.json: not the file that dvc.lock names" in told.stderr
    shutil.rmtree(copy / "data/export")
    told = millrace(copy, "promote")
    assert told.returncode == 2 and "`dvc pull export evaluate` or `dvc repro export` brings it" in told.stderr


def test_its_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv[1:] = ['promote', '--help']; from pipeline.cli import main\ntry: main()\nexcept: pass\n"
    )
    heavy = "print(sorted({'mlflow', 'torch', 'numpy', 'pydantic', 'dvc', 'prefect'} & sys.modules.keys()))"
    done = subprocess.run(["python", "-c", program + heavy], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
