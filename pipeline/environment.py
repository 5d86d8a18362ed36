"""The environment in which every tool runs: quiet, offline, and with this Python first on the PATH.

dvc.yaml says `python -m stages.NAME`; which python that is must not depend on whether somebody has
activated `.venv`. No tool reports usage to its makers. What the user has set stays as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

QUIET = {
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # MLflow accepts this word alone
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}

# One line of a stage reads `12:03:11 | train | step 100 ...`.
PREFECT_LINES = {
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s | %(flow_name)s | %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s | %(task_run_name)s | %(message)s",
}

# Says where DVC found itself when it started us; wrong for another folder.
OF_ANOTHER_RUN = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")


def prepare() -> None:
    """Sets what is missing in the environment of this process; to be called before prefect is imported."""
    for name, value in (QUIET | PREFECT_LINES).items():
        os.environ.setdefault(name, value)


def for_programs(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for `dvc` and the stages it runs."""
    environment = {**QUIET, **os.environ}
    for name in OF_ANOTHER_RUN:
        environment.pop(name, None)
    programs = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([programs, environment.get("PATH", os.defpath)])
    return {**environment, **(extra or {})}
