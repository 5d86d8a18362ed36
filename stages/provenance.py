"""Where a run comes from, as tags for MLflow: commit, DVC experiment, hashes of data and code, versions.

Example: {"git_commit": "4be1..", "git_dirty": "false", "dvc_experiment": "bluff-gyms", "data_sha256":
"77c0..", "tokenizer_sha256": "0d9e..", "eval_sha256": "51aa..", "code_train": "c3f8..", "torch":
"2.13.0"}. A tag whose source does not exist (no git, no experiment) is left out. None of this may
enter an output: equal inputs must give equal bytes at any commit.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from stages.entry import Job, file_sha256

PACKAGES = ("torch", "numpy", "pyarrow", "tokenizers", "transformers", "dvc", "mlflow")


def provenance(job: Job) -> dict[str, str]:
    """The tags of a run of this job. Reads small files and asks git; takes milliseconds."""
    data = job.root / "data"
    tags = {
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "data_sha256": _sha256(data / "pack" / "train" / "index.json"),
        "tokenizer_sha256": _sha256(data / "tokenizer" / "tokenizer.json"),
        "eval_sha256": _value(data / "pack" / "metrics.json", "eval_sha256"),
        f"code_{job.stage}": _value(data / "code" / f"{job.stage}.json", "digest"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **_git(job.root),
    }
    return {name: value for name, value in tags.items() if value}


def in_experiment(root: Path) -> bool:
    """Whether DVC runs this as an experiment, in the workspace, queued, or in a temporary copy.

    `dvc exp run` names itself and its baseline in the environment of every stage; `dvc repro` sets
    neither.
    """
    named = any(os.environ.get(name) for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"))
    return named or "/.dvc/tmp/exps/" in f"{root.resolve()}/"


def _git(root: Path) -> dict[str, str]:
    """The commit, and whether tracked files differ from it; dvc.lock does, in the middle of every run."""
    commit = _output(root, "git", "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _output(root, "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return {"git_commit": commit, "git_dirty": "true" if changed else "false", "mlflow.source.git.commit": commit}


def _output(root: Path, *command: str) -> str:
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _value(path: Path, key: str) -> Any:
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
