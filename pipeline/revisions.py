"""What a commit, an experiment or the workspace holds: params, metrics and small files, read without DVC.

dvc.lock of the revision names every output by its hash, and the cache has the bytes; git has params.yaml. So a
report over thirty experiments reads thirty small files each, and checks nothing out.

    Revision.of(root, "post-norm-true-s0-3f2a91c").json("data/evaluate/metrics.json")["bits_per_byte"]
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.locked import Locked
from stages.errors import BadInput

WORKSPACE = "workspace"
RUN_KEY = "millrace.run"  # the tag by which stages/mlflow_store.py finds the run of a training


@dataclasses.dataclass(frozen=True)
class Revision:
    """One state of the repository.

    Attributes:
        name: as the user named it.
        commit: of git, in full; empty for the workspace.
        stages: what its dvc.lock says.
    """

    root: Path
    name: str
    commit: str
    params: Mapping[str, Any]
    locked: Locked

    @classmethod
    def of(cls, root: Path, name: str) -> Revision:
        """A commit, branch, tag or experiment by its name, or `workspace`.

        Raises:
            BadInput: there is none, or it has no params.yaml.
        """
        yaml = YAML(typ="safe")
        if name == WORKSPACE:
            return cls(root, name, "", yaml.load((root / "params.yaml").read_text(encoding="utf-8")), Locked(root))
        commit = commit_of(root, name)
        params, lock = (show(root, commit, path) for path in ("params.yaml", "dvc.lock"))
        if params is None:
            raise BadInput(f"{name}: this revision has no params.yaml")
        return cls(root, name, commit, yaml.load(params), Locked(root, lock or ""))

    def need_run(self) -> None:
        """Raises BadInput where there is nothing to set beside another revision: no run, or one of another machine."""
        if self.metrics():
            return
        if not self.commit:
            raise BadInput("workspace: no run here yet; `dvc repro` makes one")
        begin = f"{self.name}: no run of yours is committed there"
        if self.locked.stages:
            begin += " (the DVC cache has no metrics of those that its dvc.lock names; `dvc fetch` may bring them)"
        raise BadInput(f"{begin}; after a run, `git add params.yaml dvc.lock` and `git commit` make it a baseline")

    def read(self, path: str) -> bytes | None:
        """The bytes of an output, or None where the revision has none or the cache has lost it."""
        for stage in self.locked.stages:
            for out, entry in self.locked.files(stage, "outs").items():
                if out == path:
                    return self._cached(path, entry["md5"])
                if path.startswith(f"{out}/") and (listed := self._cached(out, entry["md5"])):
                    inside = {item["relpath"]: item["md5"] for item in json.loads(listed)}
                    if name := inside.get(path.removeprefix(f"{out}/")):
                        return self._cached(path, name)
        return None

    def text(self, path: str) -> str | None:
        """A file of git, as this revision has it."""
        if self.commit:
            return show(self.root, self.commit, path)
        return (self.root / path).read_text(encoding="utf-8") if (self.root / path).is_file() else None

    def _cached(self, path: str, md5: str) -> bytes | None:
        try:
            return self.locked.entry(md5).read_bytes()
        except OSError:
            return self.locked.content(path, md5) if not self.commit else None

    def json(self, path: str) -> Any:
        content = self.read(path)
        return json.loads(content) if content is not None else None

    def rows(self, path: str) -> list[dict[str, str]]:
        """The rows of a CSV file; none where it is not there."""
        content = self.read(path)
        return list(csv.DictReader(io.StringIO(content.decode()))) if content else []

    def metrics(self) -> dict[str, Any]:
        """Every value of every metrics.json: `evaluate.bits_per_byte` and so on, and those of timing.json."""
        found: dict[str, Any] = {}
        for stage in self.locked.stages:
            for path in self.locked.files(stage, "outs"):
                if Path(path).name in ("metrics.json", "timing.json") and isinstance(values := self.json(path), dict):
                    found |= {f"{stage}.{name}": value for name, value in values.items()}
        return found

    def flat_params(self) -> dict[str, Any]:
        """`{"train.lr": 0.02}`, without `execution`, which changes no result."""
        return {
            f"{section}.{key}": value
            for section, values in self.params.items()
            if section != "execution" and isinstance(values, Mapping)
            for key, value in values.items()
        }


def commit_of(root: Path, name: str) -> str:
    """The commit of a revision of git, or else of a DVC experiment; the newest of its name.

    Raises:
        BadInput: there is neither.
    """
    if commit := git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
        return commit
    refs = git(root, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    for line in (refs or "").splitlines():
        commit, _, ref = line.partition(" ")
        if ref.count("/") >= 4 and ref.split("/", 4)[4] == name:
            return commit
    raise BadInput(f"{name}: no commit, branch, tag or experiment; `dvc exp list --all` and `git branch` list them")


def experiments_on(root: Path, commit: str) -> dict[str, str]:
    """The experiments of a commit: name to revision."""
    prefix = f"refs/exps/{commit[:2]}/{commit[2:]}/"
    lines = git(root, "for-each-ref", "--format=%(objectname) %(refname)", prefix) or ""
    return {ref.removeprefix(prefix): found for found, _, ref in (line.partition(" ") for line in lines.splitlines())}


def show(root: Path, commit: str, path: str) -> str | None:
    """A file of a commit, or None."""
    return git(root, "show", f"{commit}:{path}")


def git(root: Path, *arguments: str) -> str | None:
    """What git says, without the last line end; None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def mlflow_runs(root: Path) -> dict[str, str]:
    """Ids of MLflow's runs by the key of the training, from the database of this repository; none without one."""
    return dict(tracked_rows(root, "select value, run_uuid from tags where key = ?", RUN_KEY))


def tags_of_run(root: Path, key: str) -> dict[str, str]:
    """The tags of the run of a training, by its key."""
    select = "select key, value from tags where run_uuid in (select run_uuid from tags where key = ? and value = ?)"
    return dict(tracked_rows(root, select, RUN_KEY, key))


def tracked_rows(root: Path, select: str, *values: str) -> list[tuple[Any, ...]]:
    """Rows of MLflow's database, read as SQLite: importing MLflow takes seconds."""
    database = root / ".dvc" / "tmp" / "millrace" / "mlflow.db"
    if not database.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute(select, values).fetchall()
    except sqlite3.Error:
        return []  # it only adds to the page
