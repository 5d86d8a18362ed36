"""One run in an MLflow store: found by its key or made, and written so that nothing stands there twice.

Used by the thread of tracking.py alone, which says why and when. Everything here may block and may
raise whatever MLflow raises.

Example: the run has `loss` at steps 310 to 350 from a process that was killed. The points 340, 350, 360
of the next one come in; 360 is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "millrace"
RUN_KEY = "millrace.run"
MOST_METRICS, MOST_PARAMS = 1000, 100  # per request: MLflow's limits


@dataclass(frozen=True)
class Point:
    key: str
    value: float
    milliseconds: int
    step: int


class Store:
    """MLflow's client and one run. Only one thread may call it.

    Attributes:
        uri: the address of the store.
        tags: of the run; set where it does not have them yet.
    """

    def __init__(self, uri: str, artifacts: Path | None, key: str, params: dict[str, str], tags: dict[str, str]):
        self.uri, self._artifacts = uri, artifacts
        self._key, self._params, self.tags = key, params, tags
        self._opened: tuple[MlflowClient, str] | None = None
        self._continued = self._finished_before = False
        self._steps: dict[str, set[int]] = {}  # of each curve: what the run had before we came

    def open(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; finds or makes the run at the first call."""
        if self._opened is None:
            from mlflow import MlflowClient

            logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; the caller says it once
            with self._alone():
                client = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
                run_id = self._find_or_create(client)
            self._opened = client, run_id
        return self._opened

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes that make the tables of a new database at once break each other."""
        if self._artifacts is None:
            yield
            return
        self._artifacts.parent.mkdir(parents=True, exist_ok=True)
        with (self._artifacts.parent / "mlflow.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _find_or_create(self, client: MlflowClient) -> str:
        from mlflow.entities import Param, RunTag

        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = None if self._artifacts is None else self._artifacts.as_uri()
            experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{self._key}'", max_results=1)
        if found:
            run, self._continued = found[0], True
            self._finished_before = run.info.status == "FINISHED"
            if not self._finished_before:
                client.update_run(run.info.run_id, status="RUNNING")
        else:
            name = self.tags.get("dvc_experiment") or self._key
            run = client.create_run(experiment_id, tags={RUN_KEY: self._key}, run_name=name)
        params = [Param(key, value) for key, value in self._params.items() if key not in run.data.params]
        tags = [RunTag(key, value) for key, value in self.tags.items() if key not in run.data.tags]
        client.log_batch(run.info.run_id, tags=tags)
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
        return str(run.info.run_id)

    def write_points(self, points: list[Point]) -> None:
        """Up to 1,000 points, without those whose step the run had before this process came."""
        from mlflow.entities import Metric

        client, run_id = self.open()
        new = [point for point in points if point.step not in self._steps_before(point.key)]
        client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.milliseconds, p.step) for p in new])

    def _steps_before(self, key: str) -> set[int]:
        if key not in self._steps:
            client, run_id = self.open()
            history = client.get_metric_history(run_id, key) if self._continued else []
            self._steps[key] = {point.step for point in history}
        return self._steps[key]

    def write_results(self, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        client, run_id = self.open()
        now, present = int(time.time() * 1000), client.get_run(run_id).data.metrics
        changed = [Metric(key, value, now, 0) for key, value in values.items() if present.get(key) != value]
        client.log_batch(run_id, metrics=changed)

    def end(self, status: str) -> None:
        """Sets the final status. A run that was finished before keeps its status and its end time."""
        if not self._finished_before:
            client, run_id = self.open()
            client.set_terminated(run_id, status)
