"""`millrace up` and the deployments of prefect.yaml, with real processes: a server, a worker, flows, stages, kills.

One server for the whole module: the tests run in this order, each in the workspace that the one before has left.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import environment
from pipeline.scheduling.addresses import Addresses
from tests.pipeline.tiny_repository import command, dvc, write_repository

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")]

ROOT = Path(__file__).parents[2]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
GPU_STAGE = "    cmd: exec python stage.py right out/code\n"


def wait_for(happened: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Team:
    """A clone with `millrace up` at work in it, and what a member of the team does through Prefect's API."""

    def __init__(self, root: Path, port: int):
        self.root, self.api = root, f"http://127.0.0.1:{port}/api"
        self.up = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "up", "--port", str(port), "--mlflow-port", "0", "--gpus", "0"],
            cwd=root,
            env=environment.for_programs({"PYTHONPATH": str(ROOT)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, what: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """The answer of the API; asked again while the server is busy, as every client of Prefect does."""
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            f"{self.api}/{what}", data, {"Content-Type": "application/json"}, method=method
        )
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(0.5)

    def start(self, **parameters: Any) -> str:
        deployment = self.ask("deployments/name/pretrain/cpu", method="GET")["id"]
        return self.ask(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> dict[str, Any]:
        try:
            return self.ask(f"flow_runs/{run}", method="GET")["state"]
        except OSError:  # while the server is away
            return {"name": "", "type": "", "message": ""}

    def ended(self, run: str, seconds: float = 120) -> str:
        """Name and message of the last state."""
        wait_for(lambda: self.state(run)["type"] in OVER, seconds, "the end of the flow run")
        return f"{self.state(run)['name']}: {self.state(run)['message']}"

    def stages(self, run: str) -> dict[str, str]:
        """The last state of each task of a flow run that has ended: they reach the server as events, after its end."""

        def last_states() -> list[tuple[str, dict[str, Any]]]:
            found = self.ask("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run]}}})
            known = [(task["name"], task["state"]) for task in found if task["state"]]
            return known if all(state["type"] in OVER for _, state in known) else []

        known = wait_for(last_states, 120, "the last states of the tasks")
        return {name: f"{state['name']}: {state['message']}" for name, state in known}

    def history(self, run: str, stage: str) -> list[tuple[str, str]]:
        """Name and message of each state that the task of a stage went through."""
        found = self.ask("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run]}, "name": {"any_": [stage]}}})
        states = self.ask(f"task_run_states/?task_run_id={found[0]['id']}", method="GET")
        return [(state["name"], state["message"]) for state in states]

    def log(self) -> str:
        """What the worker and its flows have said."""
        return (self.root / ".dvc/tmp/millrace/up/cpu.log").read_text()

    def taken_slots(self) -> int:
        return self.ask("v2/concurrency_limits/gpu", method="GET")["active_slots"]

    def behave(self, stage: str, wish: str) -> None:
        for path in (self.root / "behaviour").glob("*"):
            path.unlink()
        (self.root / "behaviour" / stage).write_text(wish)

    def at_work(self, stage: str) -> psutil.Process:
        """The process of a stage that was told to meet another, as soon as it waits there."""
        wait_for((self.root / "behaviour" / f"{stage}.here").exists, 120, f"{stage} at work")
        return next(p for p in self.processes() if p.cmdline()[1:3] == ["stage.py", stage])

    def processes(self) -> list[psutil.Process]:
        """Everything that works in this clone."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.root) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def named(self, *words: str) -> psutil.Process:
        """The one process, guards apart, whose command has these words."""
        fitting = [p for p in self.processes() if set(words) <= set(p.cmdline()) and "--guard" not in p.cmdline()]
        assert len(fitting) == 1, fitting
        return fitting[0]


def gone(*processes: psutil.Process) -> None:
    """None of them is left: by themselves, within seconds, of which a busy machine needs more."""
    _, left = psutil.wait_procs(processes, timeout=60)
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    root = tmp_path_factory.mktemp("team") / "clone"
    root.mkdir()
    write_repository(root)
    (root / "dvc.yaml").write_text(
        (root / "dvc.yaml").read_text().replace(GPU_STAGE, GPU_STAGE + "    meta: {gpu: true}\n")
    )
    (root / "params.yaml").write_text((root / "params.yaml").read_text() + "execution:\n  device: cuda\n")
    (root / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    (root / "pipeline").symlink_to(ROOT / "pipeline")
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + "/pipeline\n")
    command(root, "git", "add", "--all")
    command(root, "git", "commit", "--quiet", "--message", "stage on a GPU")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    team = Team(root, port)
    try:
        wait_for(lambda: Addresses.read(root).prefect or team.up.poll() is not None, 120, "millrace up")
        assert team.up.poll() is None, team.up.stdout and team.up.stdout.read()
        yield team
    finally:
        team.up.kill()
        gone(*team.processes())  # kill -9 of it leaves no orphan


def test_a_port_in_use_is_told(team: Team, tmp_path: Path) -> None:
    from pipeline.scheduling.services import check_free
    from stages.errors import BadInput

    port = int(team.api.split(":")[2].removesuffix("/api"))
    with pytest.raises(BadInput, match=f"--port {port}: address already in use on 127.0.0.1; stop what uses it"):
        check_free(port, "--port")


def test_a_run_that_is_cancelled_leaves_no_process_and_no_slot_and_goes_on_when_asked_again(team: Team) -> None:
    team.behave("right", "meet nobody")
    run = team.start()
    stage = team.at_work("right")
    assert team.taken_slots() == 1
    team.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    gone(stage, team.named("prefect.engine"))
    assert team.ended(run) == "Stopped: stopped by SIGTERM; the same command goes on from here"
    assert team.taken_slots() == 0
    assert team.stages(run)["code"] == "Completed: because never ran"


def test_a_flow_that_is_killed_takes_its_stage_along_and_the_next_says_what_it_waits_for(team: Team) -> None:
    team.behave("right", "meet nobody")
    run = team.start()
    stage, flow = team.at_work("right"), team.named("prefect.engine")
    flow.kill()
    gone(stage)
    assert team.ended(run).startswith("Crashed: ")
    assert team.taken_slots() == 1  # until its lease ends, a minute later
    team.behave("left", "")
    run = team.start()
    waits = "waits for a slot of `gpu` since "
    wait_for(lambda: waits in team.log(), 60, "the next flow")
    team.ask("v2/concurrency_limits/gpu", {"active_slots": 0}, "PATCH")
    assert team.ended(run) == "Completed: 3 completed, 2 unchanged"
    # its states are asked for afterwards: for a minute after such a kill the server may show what was before
    said = [message for name, message in team.history(run, "right") if name == "WaitsForGPU"]
    assert said and all(re.fullmatch(waits + r"\d+ s \(1 of 1 taken\)", message) for message in said)


def test_a_worker_that_is_killed_takes_flow_and_stage_along_and_is_started_again(team: Team) -> None:
    team.behave("right", "meet nobody")
    run = team.start(targets=["right"], only=True, force=True)
    stage, flow = team.at_work("right"), team.named("prefect.engine")
    worker = team.named("worker", "start")
    worker.kill()
    gone(stage, flow)
    assert team.ended(run) == "Stopped: stopped by SIGTERM; the same command goes on from here"
    wait_for(lambda: [p for p in team.processes() if {"worker", "start"} <= set(p.cmdline())], 10, "another worker")


def test_a_flow_outlives_its_server_and_reports_to_the_next_one(team: Team) -> None:
    team.behave("right", "meet go")
    run = team.start(targets=["right"], only=True, force=True)
    stage = team.at_work("right")
    team.named("server", "start").kill()
    wait_for(lambda: team.state(run)["type"], 60, "another server")
    assert stage.is_running()
    (team.root / "behaviour" / "go.here").touch()
    assert team.ended(run) == "Completed: 2 completed"


def test_overrides_run_beside_and_are_kept_as_an_experiment(team: Team) -> None:
    command(team.root, "git", "add", "dvc.lock")
    command(team.root, "git", "commit", "--quiet", "--message", "ran")
    run = team.start(overrides={"left.amount": 3})
    end = team.ended(run)
    (name,) = dvc(team.root, "exp", "list", "--name-only").split()
    assert end.startswith("Completed: 4 completed, 1 unchanged; experiment " + name)
    assert command(team.root, "git", "status", "--porcelain") == ""
    stages = team.stages(run)
    assert stages["left"] == "Completed: because param left.amount: 1 -> 3"
    assert stages["right"] == "Unchanged: params, files and code are those of its last run"
    artifacts = team.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    assert {artifact["key"] for artifact in artifacts} == {"pretrain-graph", "pretrain-curves", "pretrain-links"}
    assert team.ended(team.start(overrides={"amount": 3})).startswith(
        "Failed: overrides: amount: must read section.key"
    )


def test_the_end_of_up_is_the_end_of_everything(team: Team) -> None:
    team.behave("right", "meet nobody")
    team.start(targets=["right"], only=True, force=True)
    team.at_work("right")
    everything = team.processes()
    team.up.send_signal(signal.SIGTERM)
    gone(*everything)
    output, _ = team.up.communicate(timeout=60)
    assert team.up.returncode == 0 and output.endswith("millrace: stopped\n")
    assert not Addresses.read(team.root).prefect
