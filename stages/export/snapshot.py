"""What leads from a registered model back to the workspace that made it: two files in each version.

    provenance/dvc.lock       the hashes of every output of every stage, the export's too
    provenance/changes.patch  how code and params differed from the commit in the tag `git_commit`

    git worktree add ../back $GIT_COMMIT && cd ../back && dvc cache dir --local "$OLDPWD/.dvc/cache"
    git apply --allow-empty provenance/changes.patch && cp provenance/dvc.lock . && dvc checkout

A commit alone would not do: DVC writes dvc.lock while stages run, so the commit that a stage sees holds the lock of
an earlier run. And what DVC will write about the stage `export` is not yet there while export registers its
model; so its entry is made here, as DVC makes it: the md5 of each file, and of a folder the md5 of the list of
them. A test lets DVC itself check it (`dvc status` of the restored workspace).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.entry import Job

CODE = ("model", "stages")  # where files that git does not know yet are part of the work
MOST_BYTES = 10_000_000  # a larger patch is data, not code


def snapshot(job: Job, outputs: Path) -> dict[str, bytes]:
    """The two files by name, as far as there is a git repository and a dvc.lock.

    Args:
        outputs: the folder that holds what stands, or will stand, in data/STAGE.
    """
    files = {"dvc.lock": complete_lock(job, outputs), "changes.patch": changes(job.root)}
    return {name: content for name, content in files.items() if content is not None}


def complete_lock(job: Job, outputs: Path) -> bytes | None:
    """dvc.lock with the entry that the stage will have once it is done."""
    yaml = YAML(typ="safe")
    if not (job.root / "dvc.lock").is_file() or not (job.root / "dvc.yaml").is_file():
        return None
    lock = yaml.load((job.root / "dvc.lock").read_text(encoding="utf-8"))
    stage = yaml.load((job.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][job.stage]
    values = yaml.load((job.root / "params.yaml").read_text(encoding="utf-8"))
    known = {out["path"]: out for entry in lock["stages"].values() for out in entry.get("outs", ())}
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in stage.get("outs", [])]
    paths += [next(iter(out)) if isinstance(out, dict) else out for out in stage.get("metrics", [])]
    params = {section: values[section] for section in stage.get("params", [])}
    lock["stages"][job.stage] = {
        "cmd": stage["cmd"],
        "deps": [dict(known[path]) for path in sorted(stage.get("deps", ())) if path in known],
        **({"params": {"params.yaml": params}} if params else {}),
        "outs": [entry_of(path, outputs / Path(path).name) for path in sorted(paths)],
    }
    content = io.BytesIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.dump(lock, content)
    return content.getvalue()


def entry_of(path: str, place: Path) -> dict[str, Any]:
    """An output as dvc.lock describes it; `place` is where it lies now."""
    if place.is_file():
        return {"path": path, "hash": "md5", "md5": md5(place.read_bytes()), "size": place.stat().st_size}
    files = sorted((file.relative_to(place).as_posix(), file) for file in place.rglob("*") if file.is_file())
    listed = [{"md5": file_md5(file), "relpath": name} for name, file in files]
    folder = md5(json.dumps(listed, sort_keys=True).encode())
    size = sum(file.stat().st_size for _, file in files)
    return {"path": path, "hash": "md5", "md5": f"{folder}.dir", "size": size, "nfiles": len(files)}


def changes(root: Path) -> bytes | None:
    """How the files that git knows, and new ones of the code, differ from the commit; dvc.lock stands by itself."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}  # the user's own stays as it is
        if _git(root, "read-tree", "HEAD", **index) is None:
            return None
        _git(root, "add", "--intent-to-add", "--", *(name for name in CODE if (root / name).is_dir()), **index)
        patch = _git(root, "diff", "--binary", "HEAD", "--", ".", ":!dvc.lock", **index)
    return patch if patch is None or len(patch) <= MOST_BYTES else None


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _git(root: Path, *arguments: str, **variables: str) -> bytes | None:
    """What git says, or None where it refuses: there is no repository, or no commit."""
    command = ["git", "-c", "core.autocrlf=false", *arguments]
    try:
        done = subprocess.run(command, cwd=root, env={**os.environ, **variables}, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
