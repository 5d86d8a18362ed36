"""Where a run comes from, for MLflow: commit, DVC experiment, hashes of data and code, versions, params, data sets.

Example: {"git_commit": "4be1..", "git_dirty": "false", "dvc_experiment": "bluff-gyms", "data_sha256":
"77c0..", "tokenizer_sha256": "0d9e..", "eval_sha256": "51aa..", "code_train": "c3f8..", "torch":
"2.13.0"}; there is a `code_STAGE` for every stage. A tag whose source does not exist (no git, no
experiment) is left out. None of this may enter an output: equal inputs must give equal bytes at any commit.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.entry import Job
from stages.files import file_sha256

LONGEST_PARAM = 6000  # characters: MLflow's limit
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
        **{f"code_{path.stem}": _value(path, "digest") for path in sorted((data / "code").glob("*.json"))},
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **_git(job.root),
    }
    return {name: value for name, value in tags.items() if value}


def group_of(tags: dict[str, str]) -> str:
    """The MLflow run under which this one stands: its ablation, else all experiments on its baseline.

    So MLflow shows the tree of `dvc exp show`. A plain `dvc repro` stands under nothing. The ablation's name comes
    in MILLRACE_ABLATION.
    """
    if ablation := os.environ.get("MILLRACE_ABLATION"):
        return ablation
    baseline = tags.get("dvc_baseline") or tags.get("git_commit", "")
    return f"experiments on {baseline[:7]}" if tags.get("dvc_experiment") and baseline else ""


def params_before(job: Job) -> dict[str, Any]:
    """The sections that the stages before this one have read, so that a run of `train` names its filters too."""
    graph = _yaml(job.root / "dvc.yaml").get("stages", {})
    before = itertools.takewhile(lambda stage: stage != job.stage, graph)
    values = _yaml(job.root / "params.yaml")
    return {section: values[section] for stage in before for section in graph[stage].get("params", ())}


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


def datasets(job: Job) -> list[dict[str, str]]:
    """What was trained on or measured with, each with its digest: the corpus, and rows of tokens."""
    splits = {"train": ("train", "validation"), "evaluate": ("test",)}.get(job.stage, ())
    found = []
    corpus = job.root / "data" / "download" / "manifest.json"
    if splits and corpus.is_file():
        facts = json.loads(corpus.read_text(encoding="utf-8"))
        profile = {name: facts[name] for name in ("documents", "bytes", "revision", "packages") if facts.get(name)}
        found.append(_dataset("corpus", corpus, {"source": facts.get("source")}, profile, "corpus"))
    for split in splits:
        index = job.root / "data" / "pack" / split / "index.json"
        if index.is_file():
            facts = json.loads(index.read_text(encoding="utf-8"))
            profile = {name: facts[name] for name in ("documents", "tokens", "rows", "padding") if name in facts}
            schema = {name: facts[name] for name in ("context_length", "vocab_size", "dtype") if name in facts}
            context = {"train": "training", "test": "testing"}.get(split, split)
            found.append(_dataset(split, index, {"path": f"data/pack/{split}"}, profile, context, schema))
    return found


def _dataset(
    name: str, file: Path, source: Any, profile: Any, context: str, schema: dict[str, Any] | None = None
) -> dict[str, str]:
    described = {"source": source, "profile": profile, **({"schema": schema} if schema else {})}
    texts = {key: json.dumps(value) for key, value in described.items()}
    return {"name": name, "digest": file_sha256(file), "source_type": "dvc", "context": context, **texts}


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


def _yaml(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _value(path: Path, key: str) -> Any:
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
