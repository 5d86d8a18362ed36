"""Runs and models on a real MLflow server with an artifact store, which may be down or slow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import tracking
from stages.entry import Job
from stages.execution import Execution
from stages.export.registry import publish
from stages.files import write_json
from stages.tracking import Unavailable, address_of, open_run, unsent_folder
from stages.unsent import waiting

ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` on the port on which it was down before."""
    folder = tmp_path_factory.mktemp("server")
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    program = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            program, env={**os.environ, **ENVIRONMENT}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


def job_on(root: Path, port: int, stage: str = "train") -> Job:
    return Job(stage, root, Execution(tracking_uri=f"http://127.0.0.1:{port}"))


def test_what_a_server_that_was_down_did_not_get_is_sent_by_the_next_stage(
    root: Path, port: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    job = job_on(root, port)
    (root / "loss.csv").write_text("step,loss\n")
    with open_run(job, "whole", {"train": {"lr": 0.02}}, {"git_commit": "a"}) as run:
        for step in range(30):
            run.metrics(step, {"loss": 5.0 - step / 10})
        run.results({"validation_loss": 2.0})
        run.artifact(root / "loss.csv")
    (root / "loss.csv").unlink()
    (kept,) = waiting(unsent_folder(job), address_of(job))
    assert f"they wait in {kept}" in capsys.readouterr().out

    uri = request.getfixturevalue("server")
    with open_run(job_on(root, port, "evaluate"), "whole", {"evaluate": {"seed": 0}}, {"git_commit": "b"}) as run:
        run.results({"bits_per_byte": 1.7})
    assert "sent what 1 earlier stages could not" in capsys.readouterr().out
    assert not waiting(unsent_folder(job), address_of(job))

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (stored,) = client.search_runs(["1"], "tags.`millrace.run` = 'whole'")
    assert stored.data.params == {"train.lr": "0.02", "evaluate.seed": "0"} and stored.info.status == "FINISHED"
    assert (stored.data.tags["git_commit"], stored.data.tags["sent_later"]) == ("a", "train")
    assert (stored.data.metrics["validation_loss"], stored.data.metrics["bits_per_byte"]) == (2.0, 1.7)
    history = client.get_metric_history(stored.info.run_id, "loss")
    assert [point.step for point in history] == list(range(30))
    assert {file.path for file in client.list_artifacts(stored.info.run_id)} == {"loss.csv", "environment"}
    # the machine of the training, under the names that MLflow's page of system metrics draws
    assert stored.data.metrics["system/cpu_utilization_percentage"] >= 0
    files = {file.path for file in client.list_artifacts(stored.info.run_id, "environment")}
    assert files == {"environment/requirements.txt", "environment/environment.json"}


def test_a_server_that_never_answers_does_not_slow_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "SERVER_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        job = job_on(tmp_path, silent.getsockname()[1])
        begin = time.monotonic()
        with open_run(job, "slow", {}) as run:
            opened = time.monotonic() - begin
            for step in range(5000):
                run.metrics(step, {"loss": 1.0})
            logged = time.monotonic() - begin - opened
        closed = time.monotonic() - begin - opened - logged
    assert opened < 10 and logged < 10 and closed < 30  # not the minutes that a server takes which does not answer
    (kept,) = waiting(unsent_folder(job), address_of(job))
    points = json.loads((kept / "unsent.json").read_text())["points"]
    assert [step for key, _, _, step in points if key == "loss"] == list(range(5000))


def test_a_training_of_an_ablation_stands_under_it_with_its_data_and_all_params(
    server: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages:\n  clean: {params: [clean, split]}\n  train: {params: [train]}\n")
    (tmp_path / "params.yaml").write_text("clean: {min_words: 5}\nsplit: {test: 0.01}\ntrain: {lr: 1}\n")
    index = {"documents": 40, "rows": 90, "context_length": 16, "vocab_size": 300, "dtype": "uint16"}
    for split in ("train", "validation"):
        (tmp_path / "data" / "pack" / split).mkdir(parents=True)
        write_json(tmp_path / "data" / "pack" / split / "index.json", index)
    monkeypatch.setenv("MILLRACE_ABLATION", "qk-norm")
    for key in ("one", "two", "two"):
        with open_run(job_on(tmp_path, port), key, {"train": {"lr": 2}}):
            pass

    from mlflow import MlflowClient

    client = MlflowClient(server)
    (parent,) = client.search_runs(["1"], "tags.`millrace.group` = 'qk-norm'")
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(child.data.tags["millrace.run"] for child in children) == ["one", "two"]
    child = children[0]
    assert child.data.params == {"clean.min_words": "5", "split.test": "0.01", "train.lr": "2"}
    inputs = {one.dataset.name: one for one in child.inputs.dataset_inputs}
    assert inputs.keys() == {"train", "validation"}
    assert child.data.tags["data_sha256"].startswith(inputs["train"].dataset.digest)
    assert json.loads(inputs["train"].dataset.profile) == {"documents": 40, "rows": 90}
    assert [(tag.key, tag.value) for tag in inputs["train"].tags] == [("mlflow.data.context", "training")]


@pytest.mark.slow
def test_a_model_on_the_server_is_served_without_docker(
    server: str, port: int, workspace: Path, export: Path, tmp_path: Path
) -> None:
    job = job_on(workspace, port, "export")
    with open_run(job, "served", {}) as run:
        publish(job, "served", "served", export, run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = int(free.getsockname()[1])
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@champion"]
    options = ["--env-manager", "local", "--port", str(own_port), "--workers", "1"]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_TRACKING_URI": server}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*program, *options], env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{own_port}/ping", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
        asked = {"inputs": ["Returns the"], "params": {"max_new_tokens": 8, "temperature": 0}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{own_port}/invocations", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (text,) = json.load(answer)["predictions"]
        assert isinstance(text, str)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_server_that_is_gone_is_named_to_who_waits_for_it(tmp_path: Path) -> None:
    with (
        open_run(job_on(tmp_path, 9, "export"), "gone", {}) as run,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        run.call(lambda client, run_id: run_id, seconds=60)
