"""Runs in MLflow: found again by their key, no step twice, and never in the way of the caller."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from stages import tracking
from stages.entry import Job
from stages.errors import Stopped
from stages.execution import Execution
from stages.provenance import flatten, group_of, in_experiment, provenance
from stages.tracking import Unavailable, open_run, store_address, unsent_folder

DEAD_SERVER = "http://127.0.0.1:9"  # the port `discard`, where nothing listens


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One database for all tests here: making its tables costs seconds."""
    return Job("train", tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI", "MILLRACE_ABLATION"):
        monkeypatch.delenv(name, raising=False)


def client_of(job: Job):
    from mlflow import MlflowClient

    return MlflowClient(store_address(job)[0])


def runs_of(job: Job, key: str) -> list:
    client = client_of(job)
    experiment = client.get_experiment_by_name("millrace")
    return client.search_runs([experiment.experiment_id], f"tags.`millrace.run` = '{key}'")


def test_a_run_has_params_tags_curves_figures_and_files(job: Job, tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss\n")
    with open_run(job, "whole", {"train": {"lr": 0.02, "betas": [0.9, 0.95]}}, {"data_sha256": "77c0"}) as run:
        for step in range(2500):
            run.metrics(step, {"loss": 5.0 - step / 1000})
        run.results({"bits_per_byte": 1.71})
        run.artifact(tmp_path / "loss.csv", "plots")
    (stored,) = runs_of(job, "whole")
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"train.lr": "0.02", "train.betas": "[0.9, 0.95]"}
    assert stored.data.tags["data_sha256"] == "77c0"
    assert stored.data.metrics["bits_per_byte"] == 1.71
    client = client_of(job)
    assert [point.step for point in client.get_metric_history(stored.info.run_id, "loss")] == list(range(2500))
    assert [file.path for file in client.list_artifacts(stored.info.run_id, "plots")] == ["plots/loss.csv"]


def test_a_training_that_was_stopped_and_goes_on_has_one_run_and_no_step_twice(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "HURRY_SECONDS", 60.0)
    with pytest.raises(Stopped), open_run(job, "resumed", {"train": {"lr": 1}}) as run:
        for step in range(0, 360, 10):
            run.metrics(step, {"loss": step})
        raise Stopped("SIGTERM")
    assert runs_of(job, "resumed")[0].info.status == "KILLED"
    with open_run(job, "resumed", {"train": {"lr": 1}}) as run:  # from the checkpoint of step 300
        for step in range(310, 500, 10):
            run.metrics(step, {"loss": -step})
    (stored,) = runs_of(job, "resumed")
    history = client_of(job).get_metric_history(stored.info.run_id, "loss")
    assert [point.step for point in history] == list(range(0, 500, 10))
    assert [point.value for point in history][-16:-14] == [340, 350]
    assert stored.info.status == "FINISHED"


def test_what_a_signal_left_no_time_for_is_sent_when_the_training_goes_on(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "HURRY_SECONDS", 0.0)
    with pytest.raises(Stopped), open_run(job, "hurried", {"train": {"lr": 1}}) as run:
        for step in range(0, 310, 10):
            run.metrics(step, {"loss": step})
        raise Stopped("SIGTERM")
    assert len(list(unsent_folder(job).glob("hurried-*"))) == 1
    with open_run(job, "hurried", {"train": {"lr": 1}}) as run:
        for step in range(300, 400, 10):
            run.metrics(step, {"loss": step})
    (stored,) = runs_of(job, "hurried")
    assert (stored.info.status, stored.data.tags["sent_later"]) == ("FINISHED", "train")
    history = client_of(job).get_metric_history(stored.info.run_id, "loss")
    assert [point.step for point in history] == list(range(0, 400, 10))
    assert not list(unsent_folder(job).iterdir())


def test_a_later_stage_adds_to_the_run_and_leaves_what_training_said(job: Job) -> None:
    with open_run(job, "later", {"train": {"lr": 1}}, {"git_commit": "a"}) as run:
        run.metrics(1, {"loss": 2.0})
    (trained,) = runs_of(job, "later")
    for bits_per_byte in (1.8, 1.7):
        with open_run(job, "later", {"evaluate": {"samples": 3}}, {"git_commit": "b", "eval_sha256": "e"}) as run:
            run.results({"bits_per_byte": bits_per_byte})
    (stored,) = runs_of(job, "later")
    assert stored.data.metrics["bits_per_byte"] == 1.7
    assert (stored.data.tags["git_commit"], stored.data.tags["eval_sha256"]) == ("a", "e")
    assert stored.info.end_time == trained.info.end_time


def test_a_failure_of_the_stage_is_the_status_of_the_run(job: Job) -> None:
    with pytest.raises(ZeroDivisionError), open_run(job, "failed", {}):
        raise ZeroDivisionError
    assert runs_of(job, "failed")[0].info.status == "FAILED"


def test_a_call_gets_the_client_and_the_run_and_comes_back(job: Job, capsys: pytest.CaptureFixture) -> None:
    with open_run(job, "calls", {}) as run:
        run.metrics(1, {"loss": 2.0})
        found = run.call(lambda client, run_id: client.get_run(run_id).data, seconds=60)
        with pytest.raises(Unavailable, match="division by zero"):
            run.call(lambda client, run_id: 1 / 0, seconds=60)
    assert found.tags["millrace.run"] == "calls" and found.metrics == {"loss": 2.0}
    assert "the work goes on" in capsys.readouterr().out


def test_a_dead_server_costs_one_line_and_the_caller_is_told_what_was_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    job = Job("train", tmp_path, Execution(tracking_uri=DEAD_SERVER))
    with open_run(job, "unreachable", {"train": {"lr": 1}}) as run:
        for step in range(5):
            run.metrics(step, {"loss": 1.0})
        with pytest.raises(Unavailable, match="does not answer"):
            run.call(lambda client, run_id: run_id, seconds=60)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"MLflow at {DEAD_SERVER} cannot be used (")
    assert "metrics and 2 other writes did not reach" in said[1] and "`millrace promote`" in said[1]


def test_tracking_can_be_off(tmp_path: Path) -> None:
    with open_run(Job("train", tmp_path, Execution(tracking=False)), "off", {"a": 1}) as run:
        run.metrics(1, {"loss": 1.0})
        run.results({"loss": 1.0})
        run.artifact(tmp_path)
        with pytest.raises(Unavailable, match="tracking is false"):
            run.call(lambda client, run_id: run_id, seconds=60)
    assert not list(tmp_path.iterdir())


def test_the_store_is_in_the_main_repository_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Job("train", tmp_path / "copy")
    assert store_address(copy)[0] == f"sqlite:///{tmp_path}/copy/.dvc/tmp/millrace/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert store_address(copy)[0] == f"sqlite:///{tmp_path}/main/.dvc/tmp/millrace/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    assert store_address(copy) == (
        f"sqlite:///{tmp_path}/main/runs/mlflow.db",
        tmp_path / "main" / "runs" / "mlflow-artifacts",
    )
    server = Job("train", tmp_path, Execution(tracking_uri="http://mlflow:5000"))
    assert store_address(server) == ("http://mlflow:5000", None)


def test_params_are_flattened_under_their_sections() -> None:
    nested = {"model": {"n_layers": 4, "post_norm": True}, "train": {"optimizer": {"name": "muon"}}}
    assert flatten(nested) == {"model.n_layers": "4", "model.post_norm": "true", "train.optimizer.name": "muon"}
    assert len(flatten({"text": "x" * 10_000})["text"]) == 6000


def test_provenance_names_commit_experiment_and_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "dvc.lock").write_text("1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "data" / "code").mkdir(parents=True)
    (tmp_path / "data" / "code" / "train.json").write_text(json.dumps({"digest": "c3f8"}))
    (tmp_path / "dvc.lock").write_text("2\n")  # as DVC does in the middle of a run
    tags = provenance(Job("train", tmp_path))
    assert len(tags["git_commit"]) == 40 and tags["git_dirty"] == "false"
    assert tags["code_train"] == "c3f8" and tags["torch"]
    assert "dvc_experiment" not in tags and "data_sha256" not in tags

    (tmp_path / "params.yaml").write_text("a: 2\n")
    monkeypatch.setenv("DVC_EXP_NAME", "bluff-gyms")
    tags = provenance(Job("train", tmp_path))
    assert tags["git_dirty"] == "true" and tags["dvc_experiment"] == "bluff-gyms"
    assert group_of(tags) == f"experiments on {tags['git_commit'][:7]}"
    assert group_of({**tags, "dvc_baseline": "4be1a2c99"}) == "experiments on 4be1a2c"
    assert group_of({"git_commit": "4be1a2c99"}) == ""
    monkeypatch.setenv("MILLRACE_ABLATION", "qk-norm")
    assert group_of(tags) == "qk-norm"


def test_an_experiment_is_known_by_its_environment_or_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not in_experiment(tmp_path)
    assert in_experiment(tmp_path / ".dvc" / "tmp" / "exps" / "tmp8c1")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "4be1")
    assert in_experiment(tmp_path)


def test_nothing_is_sent_home(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with open_run(job, "quiet", {}):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
