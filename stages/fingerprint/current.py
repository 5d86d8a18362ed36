"""Whether the code that a stage begins with is the code that was judged.

A fingerprint is made by the stage `code`, minutes or hours before `train` begins. What is edited in between runs, and
its result would be kept under the fingerprint of the code before: after the edit is undone, DVC would call it up to
date. So every stage looks at its start.

    data/code/clean.json has model.., stages.clean.piece {"read": "ab12.."};  now "read" is "77f0..": stages.clean.piece
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stages.fingerprint.functions import bytes_hash
from stages.fingerprint.imports import Project
from stages.fingerprint.memo import memo_of


def changed_modules(root: Path, stage: str) -> list[str]:
    """The modules and files of data/code/STAGE.json that are other ones now; none where there is no such file."""
    try:
        judged = json.loads((root / "data" / "code" / f"{stage}.json").read_bytes()).get("modules", {})
    except (OSError, ValueError, AttributeError):
        return []  # not made by DVC: `prepare_job` has looked for what must be there
    return list(_changed(Project(root, memo_of(root)), judged)) if judged else []


def _changed(project: Project, judged: dict[str, dict[str, str]]) -> Iterator[str]:
    for name, hashes in judged.items():
        if name in project.files:
            now = project.hashes(name)
        else:
            path = project.root / name
            now = {"<file>": bytes_hash(path.read_bytes())} if path.is_file() else {}
        if now != hashes:
            yield name
