"""Where the repository begins, for commands that are given below its root."""

from __future__ import annotations

from pathlib import Path

from stages.errors import BadInput


def find_root() -> Path:
    """The folder, here or above, that holds params.yaml and dvc.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").exists() and (folder / "dvc.yaml").exists():
            return folder
    raise BadInput(f"{here}: no params.yaml and dvc.yaml here or above; run this in a clone of the repository")
