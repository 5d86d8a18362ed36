"""One run in an MLflow store: found by its key or made, and written so that nothing stands there twice.

Used by the thread of tracking.py alone, which says why and when. Everything here may block and may
raise whatever MLflow raises.

Example: the run has `loss` at steps 310 to 350 from a process that was killed. The points 340, 350, 360
of the next one come in; 360 is written.

What is written is described before it is sent, as `Point`, `Results`, `Text` and `Artifact`: so it can be
kept in a file and sent by another process (unsent.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "millrace"
RUN_KEY, GROUP_KEY, PARENT = "millrace.run", "millrace.group", "mlflow.parentRunId"
MOST_METRICS, MOST_PARAMS = 1000, 100  # per request: MLflow's limits
DIGEST_LENGTH = 36  # characters of a dataset's digest: MLflow's limit


@dataclass(frozen=True)
class Address:
    """Where MLflow keeps things.

    Attributes:
        uri: of the store.
        artifacts: the folder for files beside a database on this machine; None with a server, which has its own.
        lock: a file; whoever makes tables or a run holds it.
    """

    uri: str
    artifacts: Path | None
    lock: Path


@dataclass(frozen=True)
class Identity:
    """What a run is, set where it does not have it yet: the first to say it is right.

    Attributes:
        group: the name of the run under which this one stands, or empty.
        datasets: keyword arguments of MLflow's `Dataset`, and "context".
    """

    key: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""
    datasets: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """One point of a curve. Without a step it is one of the machine: the step is the run's age in seconds."""

    key: str
    value: float
    milliseconds: int
    step: int | None


@dataclass(frozen=True)
class Results:
    """Final figures. One that changed, say because evaluate ran with other params, is replaced."""

    values: dict[str, float]


@dataclass(frozen=True)
class Text:
    """A small file, written where the run does not have it."""

    folder: str
    name: str
    text: str


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder with all that is below it."""

    path: Path
    folder: str


Write = Results | Text | Artifact


class Store:
    """MLflow's client and one run. Only one thread may call it."""

    def __init__(self, address: Address, identity: Identity, start: int | None = None):
        """`start`: when the run began, in milliseconds, if it has to be made; now, if not given."""
        self.address, self.identity, self._start = address, identity, start
        self._opened: tuple[MlflowClient, str] | None = None
        self._continued = self._finished_before = False
        self._steps: dict[str, set[int]] = {}  # of each curve: what the run had before we came

    def open(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; finds or makes the run at the first call."""
        if self._opened is None:
            from mlflow import MlflowClient

            logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; the caller says it once
            with self._alone():
                client = MlflowClient(self.address.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.address.uri)
                run = self._find_or_create(client, self._experiment(client))
            self._start = run.info.start_time
            self._describe(client, run)
            self._opened = client, str(run.info.run_id)
        return self._opened

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes that make the tables of a new database at once break each other, and make two parents."""
        self.address.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.address.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _experiment(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None if self.address.artifacts is None else self.address.artifacts.as_uri()
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))

    def _find_or_create(self, client: MlflowClient, experiment: str) -> Run:
        key, tags = self.identity.key, {RUN_KEY: self.identity.key}
        found = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
        if found:
            self._continued = True
            self._finished_before = found[0].info.status == "FINISHED"
            if not self._finished_before:
                client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        if self.identity.group:
            tags[PARENT] = self._parent(client, experiment)
        name = self.identity.tags.get("dvc_experiment") or key
        return client.create_run(experiment, start_time=self._start, tags=tags, run_name=name)

    def _parent(self, client: MlflowClient, experiment: str) -> str:
        """The run of the group, which is a heading and holds nothing."""
        group = self.identity.group
        found = client.search_runs([experiment], f"tags.`{GROUP_KEY}` = '{group}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        parent = client.create_run(experiment, tags={GROUP_KEY: group}, run_name=group)
        client.set_terminated(parent.info.run_id)
        return str(parent.info.run_id)

    def _describe(self, client: MlflowClient, run: Run) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        run_id, identity = run.info.run_id, self.identity
        params = [Param(key, value) for key, value in identity.params.items() if key not in run.data.params]
        tags = [RunTag(key, value) for key, value in identity.tags.items() if key not in run.data.tags]
        client.log_batch(run_id, tags=tags)
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        known = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs} if run.inputs else set()
        inputs = []
        for one in identity.datasets:
            described = {name: text for name, text in one.items() if name != "context"}
            dataset = Dataset(**{**described, "digest": described["digest"][:DIGEST_LENGTH]})
            if (dataset.name, dataset.digest) not in known:
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one["context"])]))
        if inputs:
            client.log_inputs(run_id, inputs)

    def write_points(self, points: list[Point]) -> None:
        """Up to 1,000 points, without those whose step the run had before this process came."""
        from mlflow.entities import Metric

        client, run_id = self.open()
        begin = self._start or 0
        new = [
            Metric(p.key, p.value, p.milliseconds, (p.milliseconds - begin) // 1000 if p.step is None else p.step)
            for p in points
            if p.step is None or p.step not in self._steps_before(p.key)
        ]
        client.log_batch(run_id, metrics=new)

    def _steps_before(self, key: str) -> set[int]:
        if key not in self._steps:
            client, run_id = self.open()
            history = client.get_metric_history(run_id, key) if self._continued else []
            self._steps[key] = {point.step for point in history}
        return self._steps[key]

    def write(self, write: Write) -> None:
        client, run_id = self.open()
        if isinstance(write, Results):
            self._write_results(write.values)
        elif isinstance(write, Artifact):
            log = client.log_artifacts if write.path.is_dir() else client.log_artifact
            log(run_id, str(write.path), write.folder or None)
        else:
            path = f"{write.folder}/{write.name}"
            if path not in {file.path for file in client.list_artifacts(run_id, write.folder)}:
                client.log_text(run_id, write.text, path)

    def _write_results(self, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        client, run_id = self.open()
        now, present = int(time.time() * 1000), client.get_run(run_id).data.metrics
        changed = [Metric(key, value, now, 0) for key, value in values.items() if present.get(key) != value]
        client.log_batch(run_id, metrics=changed)

    def end(self, status: str, milliseconds: int | None = None) -> None:
        """Sets the final status. A run that was finished before keeps its status and its end time."""
        if not self._finished_before:
            client, run_id = self.open()
            client.set_terminated(run_id, status, end_time=milliseconds)


def refused(error: BaseException) -> bool:
    """Whether the same would be refused again: a file that is gone, a name that MLflow does not take."""
    status: Any = getattr(error, "get_http_status_code", lambda: 500)()
    return isinstance(error, FileNotFoundError) or (400 <= status < 500 and status not in (408, 429))
