"""What the models in use were made of, for `millrace gc`: champion, challenger and every other alias of the registry.

A version holds the dvc.lock of its run (stages/export/snapshot.py), which may never have been committed. `dvc gc` keeps
what a project names, so each such dvc.lock becomes a project of its own for as long as it runs: a repository with one
file kept.dvc that lists the hashes, and the settings of the same cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.locked import Locked
from pipeline.revisions import git, tracked_rows
from stages.errors import BadInput

IN_USE = """
select distinct a.name, a.alias, a.version, v.source from registered_model_aliases a
join model_versions v on v.name = a.name and v.version = a.version order by a.name, a.alias
"""
COMMITTER = ("-c", "user.name=millrace", "-c", "user.email=millrace@localhost", "-c", "commit.gpgsign=false")
HASHED = ("md5", "hash", "size", "nfiles")


@dataclasses.dataclass(frozen=True)
class InUse:
    """A version that an alias names, and its dvc.lock; None where that cannot be read from here."""

    name: str
    alias: str
    version: str
    lock: str | None

    def __str__(self) -> str:
        return f"models:/{self.name}@{self.alias} (version {self.version})"


def in_use(root: Path) -> list[InUse]:
    """The versions with an alias in the database of this repository."""
    rows = tracked_rows(root, IN_USE)
    return [InUse(name, alias, str(version), lock_below(source or "")) for name, alias, version, source in rows]


def lock_below(source: str) -> str | None:
    """The dvc.lock among the files of a version, where they lie on this disk."""
    place = urlparse(source)
    with contextlib.suppress(OSError):
        if place.scheme in ("", "file"):
            return (Path(unquote(place.path)) / "provenance" / "dvc.lock").read_text(encoding="utf-8")
    return None


def not_looked_at(root: Path) -> Iterator[str]:
    """A line for each registered model whose files nothing here can name."""
    from stages.execution import Execution
    from stages.params import ParamsFile

    execution = ParamsFile(root / "params.yaml").section("execution", Execution)
    uri = execution.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri and uri != f"sqlite:///{root / '.dvc' / 'tmp' / 'millrace' / 'mlflow.db'}":
        yield f"models registered at {uri} are not looked at: commit and tag the dvc.lock of those to keep"
    for one in in_use(root):
        if one.lock is None:
            yield f"{one}: its dvc.lock cannot be read here; its files stay only where something else names them"


@contextlib.contextmanager
def projects(root: Path) -> Iterator[list[Path]]:
    """A project for each version in use, which names its files."""
    with tempfile.TemporaryDirectory() as base:
        locks = dict.fromkeys(one.lock for one in in_use(root) if one.lock)
        yield [write_project(Path(base) / str(number), Locked(root, lock)) for number, lock in enumerate(locks)]


def write_project(folder: Path, locked: Locked) -> Path:
    """A repository in which one file names what a dvc.lock names, as far as the cache still has it.

    Raises:
        BadInput: git refuses.
    """
    entries = [entry for stage in locked.stages for entry in locked.files(stage, "outs").values()]
    there = [entry for entry in entries if "md5" in entry and locked.entry(entry["md5"]).exists()]
    outs = [
        {"path": f"{number}", **{key: entry[key] for key in HASHED if key in entry}}
        for number, entry in enumerate(there)
    ]
    settings = f"[core]\n    analytics = false\n    site_cache_dir = {folder / 'site'}\n"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(f"{settings}[cache]\n    dir = {locked.cache.resolve()}\n")
    (folder / "kept.dvc").write_text(json.dumps({"outs": outs}))  # JSON is YAML
    commit = (*COMMITTER, "commit", "--quiet", "--no-verify", "--message", "kept")
    for arguments in (("init", "--quiet"), ("add", "--force", ".dvc", "kept.dvc"), commit):
        if git(folder, *arguments) is None:
            raise BadInput(f"the files of registered models cannot be named: git refuses to commit in {folder}")
    return folder
