"""Starts, watches and ends the programs of `millrace up`: a Prefect server, a worker for each pool, the MLflow UI.

    server, mlflow          started; the server answers after some seconds
    pools, limit            made through the server's REST interface
    prefect deploy --all    prefect.yaml
    worker cpu, worker gpu  look for flow runs every two seconds

At the end the flow runs come first: each gets SIGTERM, its stages write their checkpoints, and it reports to the server
that it was stopped. Only then the programs are ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline import environment
from pipeline.programs import bound, guarded
from pipeline.scheduling.addresses import Addresses, folder
from pipeline.scheduling.gpu_slot import LIMIT
from pipeline.scheduling.server import START_SECONDS, unreachable
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.params import ParamsFile
from stages.tracking import store_address

HOST = "127.0.0.1"
POOLS = ("cpu", "gpu")
LOOK_SECONDS = 0.2
BUSY = 503  # the status of a server whose database is locked just now
END_SECONDS = 4.0
MOST_STARTS, IN_SECONDS = 4, 60.0
SETTINGS = {
    # a lease outlives a server that is killed, and its end is seen within seconds
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


class Ended(Exception):
    """A program ended that must not, or we were asked to end. One line."""


@dataclasses.dataclass
class Service:
    """A program that is started again when it ends by itself."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = dataclasses.field(default_factory=list)


class Services:
    """Everything that `millrace up` runs, for as long as the block runs."""

    def __init__(self, root: Path, port: int, mlflow_port: int, n_slots: int, stopping: Callable[[], bool]):
        self.root, self.n_slots, self.stopping = root, n_slots, stopping
        self.folder = folder(root)
        self.pages = f"http://{HOST}:{port}"
        self.port, self.mlflow_port = port, mlflow_port
        self.running: list[Service] = []
        self.mlflow = ""

    def __enter__(self) -> Services:
        for port, option in ((self.port, "--port"), (self.mlflow_port, "--mlflow-port")):
            check_free(port, option)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        Addresses.remove(self.root)
        try:
            self._end_flows()
        finally:
            self._end_programs()

    def start(self) -> None:
        """Starts everything; returns when flow runs can be started.

        Raises:
            Ended: a program ended or does not answer, or a signal came.
        """
        program = [sys.executable, "-m", "prefect"]
        self._run("server", [*program, "server", "start", "--host", HOST, "--port", str(self.port)])
        self._start_mlflow()
        self._until(lambda: not unreachable(f"{self.pages}/api", seconds=1), "the Prefect server does not answer")
        for pool in POOLS:
            self._ask("work_pools/", {"name": pool, "type": "process"}, accepted=409)  # there already
        limit = {"limit": max(self.n_slots, 1)}
        if self._ask(f"v2/concurrency_limits/{LIMIT}", limit, "PATCH", accepted=404) == 404:
            self._ask("v2/concurrency_limits/", {"name": LIMIT, **limit})
        workers = POOLS if self.n_slots else POOLS[:1]
        for pool in workers:
            self._run(pool, [*program, "worker", "start", "--pool", pool, "--type", "process", "--name", pool])
        self._deploy([*program, "--no-prompt", "deploy", "--all"])
        self._until(lambda: all(map(self._is_online, workers)), "a worker does not come up")
        Addresses(f"{self.pages}/api", self.mlflow).write(self.root)

    def told(self) -> str:
        """What is where, for the person who has started it."""
        workers = [service.name for service in self.running if service.name in POOLS]
        slots = f"; {self.n_slots} slots of the limit `{LIMIT}`" if self.n_slots else ""
        return (
            f"  Prefect   {self.pages}   flows, deployments, logs, artifacts\n"
            f"  MLflow    {self.mlflow or 'not started'}   runs, curves, models\n"
            f"  workers   {', '.join(workers)}{slots}\n"
            f"  logs      {self.folder.relative_to(self.root)}\n"
            f"start a run in the browser (Deployments), or:\n"
            f"  export PREFECT_API_URL={self.pages}/api\n"
            f"  prefect deployment run pretrain/{workers[-1]}\n"
            f"Ctrl-C stops all of them."
        )

    def watch(self, say: Callable[[str], None]) -> None:
        """Starts again what ends by itself, until we are asked to end.

        Raises:
            Ended: a program ends again and again.
        """
        while not self.stopping():
            for service in self.running:
                if service.process and service.process.poll() is not None:
                    recent = [start for start in service.starts if time.monotonic() - start < IN_SECONDS]
                    if len(recent) >= MOST_STARTS:
                        raise Ended(f"{service.name} ends again and again: {self._last_line(service.name)}")
                    say(f"millrace: {service.name} has ended; it is started again")
                    self._spawn(service)
            time.sleep(LOOK_SECONDS)

    def _start_mlflow(self) -> None:
        """The MLflow UI over the store of this repository, unless that is a server already, or none is wanted."""
        execution = ParamsFile(self.root / "params.yaml").section("execution", Execution)
        uri, artifacts = store_address(Job("train", self.root, execution))
        if artifacts is None:
            self.mlflow = uri
        elif self.mlflow_port:
            self.mlflow = f"http://{HOST}:{self.mlflow_port}"
            artifacts.mkdir(parents=True, exist_ok=True)
            where = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts)]
            port = ["--host", HOST, "--port", str(self.mlflow_port), "--workers", "1"]
            self._run("mlflow", [sys.executable, "-m", "mlflow", "server", *where, *port])

    def _run(self, name: str, command: list[str]) -> None:
        service = Service(name, command)
        self.running.append(service)
        self._spawn(service)

    def _spawn(self, service: Service) -> None:
        service.starts.append(time.monotonic())
        with (self.folder / f"{service.name}.log").open("ab") as log:
            service.process = subprocess.Popen(
                guarded(service.command),
                cwd=self.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        ours = {
            "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(self.folder / "prefect")),
            "PREFECT_API_URL": f"{self.pages}/api",
            "PREFECT_UI_URL": self.pages,
            "MILLRACE_ROOT": str(self.root),
        }
        return environment.for_programs({**SETTINGS, **ours})

    def _deploy(self, command: list[str]) -> None:
        variables = self._environment()
        del variables["MILLRACE_ROOT"]  # each worker has its own
        with (self.folder / "deploy.log").open("wb") as log:
            deploy = subprocess.Popen(
                bound(command),
                cwd=self.root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._until(lambda: deploy.poll() is not None, "`prefect deploy --all` does not end")
        finally:
            deploy.kill()
        if deploy.returncode:
            raise Ended(f"`prefect deploy --all` refused prefect.yaml: {self._last_line('deploy')}")

    def _until(self, done: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            if self.stopping():
                raise Ended("stopped")
            for service in self.running:
                if service.process and service.process.poll() is not None:
                    raise Ended(f"{service.name} has ended: {self._last_line(service.name)}")
            if time.monotonic() > deadline:
                raise Ended(f"{problem} within {START_SECONDS} s; logs are in {self.folder}")
            time.sleep(LOOK_SECONDS)

    def _is_online(self, pool: str) -> bool:
        return any(worker["status"] == "ONLINE" for worker in self._ask(f"work_pools/{pool}/workers/filter", {}))

    def _ask(self, what: str, body: dict[str, Any], method: str = "POST", accepted: int = 200) -> Any:
        """The answer of the server's REST interface, or its status where it is the one that is accepted."""
        address, headers = f"{self.pages}/api/{what}", {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method=method)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code == accepted:
                    return accepted
                if error.code != BUSY or self.stopping() or time.monotonic() > deadline:
                    raise Ended(f"the Prefect server refused {what}: status {error.code}") from None
            time.sleep(LOOK_SECONDS)

    def _last_line(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        return f"{lines[-1].strip()} ({log})"

    def _end_flows(self) -> None:
        """Asks the flow runs of our workers to stop, and waits until their stages have saved what they must."""
        flows = []
        for service in self.running:
            if service.name in POOLS and service.process:
                with contextlib.suppress(psutil.Error):
                    guard = psutil.Process(service.process.pid)
                    flows += [child for worker in guard.children() for child in worker.children()]
        for flow in flows:
            with contextlib.suppress(psutil.Error):
                flow.terminate()
        _, left = psutil.wait_procs(flows, timeout=END_SECONDS / 2)
        if left:
            print(f"millrace: {len(left)} flow runs are being stopped; Ctrl-C again does not wait for them", flush=True)
            psutil.wait_procs(left)

    def _end_programs(self) -> None:
        processes = [service.process for service in self.running if service.process]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
            deadline = time.monotonic() + END_SECONDS
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.0, deadline - time.monotonic()))


def check_free(port: int, option: str) -> None:
    """Refuses a port of this machine that somebody uses already; 0 is none.

    Raises:
        BadInput: it is in use.
    """
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BadInput(
                f"{option} {port}: {(error.strerror or str(error)).lower()} on {HOST}; stop what uses it, or take "
                f"another: millrace up {option} {port % 65535 + 1}"
            ) from None
