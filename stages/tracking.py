"""Remembers runs in MLflow, and never makes the caller wait for it.

A run is found by a key of our own, not by MLflow's id: the digest of the training job, which stands in
the checkpoint's state.json. So a training that was killed and goes on, the evaluation of its checkpoint
and its export all write to one MLflow run, and no output has to hold an id.

    with open_run(job, "9f2c41d07be35a68", params={"train": {"lr": 0.02}}) as run:
        run.metrics(310, {"loss": 2.31})        # a point of a curve, written once
        run.results({"bits_per_byte": 1.71})    # a final figure, replaced when it changed

Example: training was killed at step 350, its last checkpoint is of step 300, and log_interval is 10. It
sends 310, 320 .. 350 again; MLflow has them, and the first new point is 360.

One background thread does everything: it imports MLflow (seven seconds), opens the store (four), and
sends what has gathered every two seconds. A server that is down costs one line in the log, is tried
again every half minute, and gets what gathered in between. Nothing here can fail a stage.

The thread shares the process with training, so fork nothing while a run is open (a forked child may
inherit a lock that nobody will open): start workers before, or by spawn. Where a run comes from (git,
DVC, hashes) is the work of provenance.py, and the model registry is the export stage's.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stages.entry import Job, scratch_root
from stages.errors import Stopped
from stages.mlflow_store import MOST_METRICS, Point, Store
from stages.progress import say
from stages.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")

FLUSH_SECONDS = 2.0
RETRY_SECONDS = 30.0
LOCAL_SECONDS = 60.0  # wait at the close; a database on this machine makes headway, the import being the most
SERVER_SECONDS = 20.0
HURRY_SECONDS = 3.0  # at the close of a stage that a signal stopped, or when MLflow does not answer
MOST_WAITING = 200_000  # points kept while a server is down; then the oldest go
LONGEST_PARAM = 6000  # characters: MLflow's limit
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Unavailable(Exception):
    """MLflow could not do what the caller waited for; the reason in one line."""


class Run:
    """One MLflow run. This class records nothing: it is what `execution.tracking: false` gives.

    Attributes:
        tags: where the run comes from (`stages.provenance`).
    """

    def __init__(self, tags: Mapping[str, str]):
        self.tags = dict(tags)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves at a training step. Steps that the run has already are skipped."""

    def results(self, values: Mapping[str, float]) -> None:
        """Final figures. One that changed, say because evaluate ran with other params, is replaced."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, or a folder with all that is below it, read while the run is still open."""

    def call(self, function: Callable[[MlflowClient, str], Result], seconds: float) -> Result:
        """The result of `function(client, run_id)`, which runs on the thread after all that was sent before.

        Raises:
            Unavailable: MLflow is off, does not answer, took longer than `seconds`, or refused.
        """
        raise Unavailable("execution.tracking is false")


@contextlib.contextmanager
def open_run(job: Job, key: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """The MLflow run of `key`: the existing one, or a new one.

    Args:
        key: digest of the training job, from the checkpoint's state.json.
        params: nested params by section; they become `train.lr` and so on.
        tags: beside those of `stages.provenance`. Both are set where the run does not have them yet: the
            first to say where a run comes from is right.
    """
    all_tags = {**provenance(job), **(tags or {})}
    if not job.execution.tracking:
        yield Run(all_tags)
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    uri, artifacts = store_address(job)
    run = _TrackedRun(Store(uri, artifacts, key, flatten(params), all_tags), job.stage)
    seconds = SERVER_SECONDS if artifacts is None else LOCAL_SECONDS
    try:
        yield run
    except BaseException as error:
        stopped = isinstance(error, (Stopped, KeyboardInterrupt))
        run.close("KILLED" if stopped else "FAILED", HURRY_SECONDS if stopped else seconds)
        raise
    run.close("FINISHED", seconds)


def store_address(job: Job) -> tuple[str, Path | None]:
    """Where MLflow keeps things, and for SQLite the folder beside it for artifacts.

    `execution.tracking_uri`, else MLFLOW_TRACKING_URI, else a database in the main repository: DVC's
    queued experiments run in temporary copies, where a relative path would be lost with the copy.
    """
    uri = job.execution.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    prefix = "sqlite:///"
    if uri and not uri.startswith(prefix):
        return uri, None
    main = Path(os.environ.get("DVC_ROOT") or job.root)
    database = (main / uri.removeprefix(prefix) if uri else scratch_root(job.root) / "mlflow.db").resolve()
    return f"{prefix}{database}", database.parent / "mlflow-artifacts"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"train": {"lr": 0.02, "betas": [0.9, 0.95]}} as {"train.lr": "0.02", "train.betas": "[0.9, 0.95]"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{key}"] = text[:LONGEST_PARAM]
    return flat


class _TrackedRun(Run):
    """Gathers on the caller's side, sends on the thread's side. Deques and events are all they share."""

    def __init__(self, store: Store, stage: str):
        super().__init__(store.tags)
        self._store, self._stage = store, stage
        self._points: deque[Point] = deque(maxlen=MOST_WAITING)
        self._calls: deque[tuple[Callable[[MlflowClient, str], Any], Future[Any]]] = deque()
        self._wake, self._closing, self._failing = threading.Event(), threading.Event(), threading.Event()
        self._status = "RUNNING"
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._points.extend(Point(key, float(value), now, step) for key, value in values.items())

    def results(self, values: Mapping[str, float]) -> None:
        copy = {key: float(value) for key, value in values.items()}
        self._submit(lambda client, run_id: self._store.write_results(copy))

    def artifact(self, path: Path, folder: str = "") -> None:
        def send(client: MlflowClient, run_id: str) -> None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(run_id, str(path), folder or None)

        self._submit(send)

    def call(self, function: Callable[[MlflowClient, str], Result], seconds: float) -> Result:
        future = self._submit(function)
        self._wake.set()
        deadline = time.monotonic() + seconds
        while not future.done() and time.monotonic() < deadline and not self._failing.is_set():
            concurrent.futures.wait([future], timeout=0.05)
        if not future.done():
            future.cancel()
            raise Unavailable("it does not answer" if self._failing.is_set() else f"it took over {seconds:.0f} s")
        if error := future.exception():
            raise Unavailable(_first_line(error)) from error
        return cast(Result, future.result())

    def _submit(self, function: Callable[[MlflowClient, str], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.append((function, future))
        return future

    def close(self, status: str, seconds: float) -> None:
        """Waits until everything is sent, `seconds` at most, and says what was not."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(min(seconds, HURRY_SECONDS) if self._failing.is_set() else seconds)
        writes = sum(future.cancel() for _, future in list(self._calls) if not future.cancelled())
        if self._points or writes or self._thread.is_alive():
            say(
                f"MLflow: {len(self._points)} metrics and {writes} other writes did not reach "
                f"{self._store.uri} in time; data/{self._stage} has all of it"
            )

    def _work(self) -> None:
        """The thread: opens the store, sends what has gathered every two seconds, and once more at the close."""
        pause = 0.0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            last_round = self._closing.is_set()
            try:
                self._store.open()
                self._send()
                if last_round:
                    self._store.end(self._status)
                self._failing.clear()
            except Exception as error:  # whatever MLflow raises: a stage never fails for it
                if not self._failing.is_set():
                    say(f"MLflow at {self._store.uri} cannot be used ({_first_line(error)}); the work goes on")
                self._failing.set()
            if last_round:
                return
            pause = RETRY_SECONDS if self._failing.is_set() else FLUSH_SECONDS

    def _send(self) -> None:
        while self._points:
            batch = [self._points.popleft() for _ in range(min(len(self._points), MOST_METRICS))]
            try:
                self._store.write_points(batch)
            except Exception:
                self._points.extendleft(reversed(batch))
                raise
        while self._calls:
            call, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*self._store.open()))
                except Exception as error:  # `call` finds it in the future
                    say(f"MLflow at {self._store.uri}: {_first_line(error)}; the work goes on")
                    future.set_exception(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
