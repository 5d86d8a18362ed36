"""Where to read on after a flow run: the run in MLflow, the report of evaluate, the DVC experiment.

The MLflow run of a training is found by its tag `millrace.run`, which stands in the checkpoint's state.json, through
the REST interface of the MLflow server: that of execution.tracking_uri or MLFLOW_TRACKING_URI, or the one of
`millrace up`. Without a server the tag is named, so that `mlflow ui` finds it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.reproduce import Workspace
from pipeline.scheduling.addresses import Addresses
from stages.execution import Execution
from stages.params import ParamsFile

ANSWER_SECONDS = 3
STATES = ("data/train/last/state.json", "data/train/best/state.json")
REPORT = "data/evaluate/report.html"


def links(workspace: Workspace) -> str:
    """The page of links, as Markdown."""
    root = workspace.directory
    lines = []
    if name := workspace.variables.get("DVC_EXP_NAME"):
        lines.append(f"- DVC experiment `{name}`: `dvc exp show`, `dvc exp apply {name}`")
    key = next((run for path in STATES if (run := _run_key(root / path))), "")
    if key:
        address = run_address(mlflow_server(workspace), key)
        lines.append(
            f"- [the training in MLflow]({address}): params, curves, system metrics, the environment"
            if address
            else f"- in MLflow: the run with the tag `millrace.run = {key}` (`millrace up` shows it)"
        )
        if address and (root / REPORT).is_file():
            lines.append(f"- [the report of evaluate]({address}/artifacts/evaluate/report.html)")
    if (root / REPORT).is_file():
        lines.append(f"- `{REPORT}` and `data/train/monitor/curves.html` in the workspace of the worker")
    return "\n".join(lines)


def _run_key(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("run", ""))
    except (OSError, ValueError):
        return ""


def mlflow_server(workspace: Workspace) -> str:
    """The address of the MLflow server that has the runs of this repository, or nothing."""
    execution = ParamsFile(workspace.directory / "params.yaml").section("execution", Execution)
    uri = execution.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    main = Path(workspace.variables.get("DVC_ROOT", workspace.directory))
    return Addresses.read(main).mlflow


def run_address(server: str, key: str) -> str:
    """The page of the run with this tag `millrace.run`, or nothing."""
    if not server:
        return ""
    try:
        experiments = _ask(server, "experiments/search", {"max_results": 1000}).get("experiments", [])
        wanted = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"tags.`millrace.run` = '{key}'",
            "max_results": 1,
        }
        run = _ask(server, "runs/search", wanted)["runs"][0]["info"]
    except (OSError, ValueError, LookupError):
        return ""
    return f"{server}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"


def _ask(server: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return json.loads(answer.read())
