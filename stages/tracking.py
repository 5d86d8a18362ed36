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
again every half minute, and gets what gathered in between; what is unsent at the end is kept on disk and
sent by the next stage (unsent.py). Nothing here can fail a stage.

The thread shares the process with training, so fork nothing while a run is open (a forked child may
inherit a lock that nobody will open): start workers before, or by spawn. Where a run comes from (git,
DVC, hashes) is the work of provenance.py, and the model registry is the export stage's.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stages import hardware
from stages.entry import Job, plain, scratch_root
from stages.errors import Stopped
from stages.mlflow_store import MOST_METRICS, Address, Artifact, Identity, Point, Results, Store, Text, Write, refused
from stages.progress import say
from stages.provenance import datasets, flatten, group_of, params_before, provenance
from stages.unsent import Unsent, keep, send_all

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")

FLUSH_SECONDS = 2.0
RETRY_SECONDS = 30.0
LOCAL_SECONDS = 60.0  # wait at the close; a database on this machine makes headway, the import being the most
SERVER_SECONDS = 20.0
HURRY_SECONDS = 3.0  # at the close of a stage that a signal stopped, or when MLflow does not answer
MOST_WAITING = 200_000  # points kept while a server is down; then the oldest go
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
    all_tags = {**provenance(job), **(hardware.tags() if job.stage == "train" else {}), **(tags or {})}
    if not job.execution.tracking:
        yield Run(all_tags)
        return
    hush()
    all_params = flatten({**params_before(job), **params})
    run = _TrackedRun(job, Identity(key, all_params, all_tags, group_of(all_tags), datasets(job)))
    seconds = SERVER_SECONDS if run.address.artifacts is None else LOCAL_SECONDS
    try:
        yield run
    except BaseException as error:
        stopped = isinstance(error, (Stopped, KeyboardInterrupt))
        run.close("KILLED" if stopped else "FAILED", HURRY_SECONDS if stopped else seconds)
        raise
    run.close("FINISHED", seconds)


def hush() -> None:
    """MLflow sends nothing home, and says nothing that a stage has not been asked for."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def address_of(job: Job) -> Address:
    uri, artifacts = store_address(job)
    return Address(uri, artifacts, (artifacts.parent if artifacts else shared_folder(job)) / "mlflow.lock")


def shared_folder(job: Job) -> Path:
    """Where every process of this repository finds what is kept between stages, also from DVC's temporary copies."""
    return Path(job.execution.scratch or scratch_root(job.root))


def unsent_folder(job: Job) -> Path:
    return shared_folder(job) / "unsent"


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


class _TrackedRun(Run):
    """Gathers on the caller's side, sends on the thread's side. Deques and events are all they share."""

    def __init__(self, job: Job, identity: Identity):
        super().__init__(identity.tags)
        self._job, self.address, self._start = job, address_of(job), _now()
        self._store = Store(self.address, identity, self._start)
        self._points: deque[Point] = deque(maxlen=MOST_WAITING)
        self._sending: list[Point] = []
        self._writes: deque[Write | _Call] = deque()  # one leaves when it has been sent
        self._wake, self._closing, self._failing = threading.Event(), threading.Event(), threading.Event()
        self._given_up = threading.Event()  # what is kept on disk is not the thread's to send any more
        self._status, self._ended = "RUNNING", False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._gather(step, values)

    def _gather(self, step: int | None, values: Mapping[str, float]) -> None:
        now = _now()
        self._points.extend(Point(key, float(value), now, step) for key, value in values.items())

    def results(self, values: Mapping[str, float]) -> None:
        self._writes.append(Results({key: float(value) for key, value in values.items()}))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._writes.append(Artifact(path, folder))

    def call(self, function: Callable[[MlflowClient, str], Result], seconds: float) -> Result:
        future: Future[Result] = Future()
        self._writes.append(_Call(function, future))
        self._wake.set()
        deadline = time.monotonic() + seconds
        while not future.done() and time.monotonic() < deadline and not self._failing.is_set():
            concurrent.futures.wait([future], timeout=0.05)
        if not future.done():
            future.cancel()
            raise Unavailable("it does not answer" if self._failing.is_set() else f"it took over {seconds:.0f} s")
        if error := future.exception():
            raise Unavailable(_first_line(error)) from error
        return future.result()

    def close(self, status: str, seconds: float) -> None:
        """Waits until everything is sent, `seconds` at most; what was not is kept, and the log says so."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(min(seconds, HURRY_SECONDS) if self._failing.is_set() else seconds)
        if self._ended:
            return
        self._given_up.set()
        points = [*self._sending, *self._points]
        writes: list[Write] = [write for write in list(self._writes) if not isinstance(write, _Call)]
        tags = {**self.tags, "sent_later": self._job.stage}
        identity = dataclasses.replace(self._store.identity, tags=tags)
        unsent = Unsent(identity, self._start, _now(), status, points, writes)
        said = f"MLflow: {len(points)} metrics and {len(writes)} other writes did not reach {self.address.uri} in time"
        try:
            folder = keep(unsent_folder(self._job), self.address, self._job.stage, unsent)
            say(f"{said}; they wait in {folder} for the next stage, or for `millrace promote`")
        except OSError as error:
            say(f"{said} and could not be kept ({_first_line(error)}); data/{self._job.stage} has all of it")

    def _work(self) -> None:
        """The thread: opens the store, sends what has gathered every two seconds, and once more at the close."""
        pause, caught_up = 0.0, False
        observer = self._observer() if self._job.stage == "train" else iter(())
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            last_round = self._closing.is_set()
            with contextlib.suppress(Exception):  # a machine that cannot be described is trained on all the same
                next(observer, None)
            try:
                if not caught_up:
                    if n_sent := send_all(unsent_folder(self._job), self.address):
                        say(f"MLflow: sent what {n_sent} earlier stages could not")
                    caught_up = True
                self._send()
                if last_round and not self._given_up.is_set():
                    self._store.end(self._status)
                    self._ended = True
                self._failing.clear()
            except Exception as error:  # whatever MLflow raises: a stage never fails for it
                if not self._failing.is_set():
                    say(f"MLflow at {self.address.uri} cannot be used ({_first_line(error)}); the work goes on")
                self._failing.set()
            if last_round:
                return
            pause = RETRY_SECONDS if self._failing.is_set() else FLUSH_SECONDS

    def _observer(self) -> Iterator[None]:
        """Describes the machine of a training, and at each `next` looks at it, where that is due."""
        for name, text in hardware.environment(plain(self._job.execution)).items():
            self._writes.append(Text("environment", name, text))
        monitor = hardware.Monitor(self._job.root)
        while True:
            if monitor.due(self._closing.is_set()):
                self._gather(None, monitor.sample())
            yield

    def _send(self) -> None:
        self._store.open()
        while (self._sending or self._points) and not self._given_up.is_set():
            for _ in range(min(len(self._points), MOST_METRICS - len(self._sending))):
                self._sending.append(self._points.popleft())  # one by one: `close` may look in between
            self._store.write_points(self._sending)
            self._sending = []
        while self._writes and not self._given_up.is_set():
            write = self._writes[0]
            if isinstance(write, _Call):
                write.answer(self._store, self.address.uri)
            else:
                try:
                    self._store.write(write)
                except Exception as error:
                    if not refused(error):
                        raise
                    say(f"MLflow at {self.address.uri}: {_first_line(error)}; the work goes on")
            self._writes.popleft()


@dataclasses.dataclass
class _Call:
    """A function that the caller waits for."""

    function: Callable[[MlflowClient, str], Any]
    future: Future[Any]

    def answer(self, store: Store, uri: str) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function(*store.open()))
            except Exception as error:  # `call` finds it in the future
                say(f"MLflow at {uri}: {_first_line(error)}; the work goes on")
                self.future.set_exception(error)


def _now() -> int:
    return int(time.time() * 1000)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
