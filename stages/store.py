"""Files that a stage keeps in scratch between runs: linked, not copied, and trimmed to a size."""

from __future__ import annotations

import shutil
from pathlib import Path


def link_file(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no hard links between the two."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def trim(store: Path, limit_bytes: float) -> None:
    """Removes the results that were used longest ago until the rest take at most so many bytes.

    Call it while no other process uses the store. A file that is also linked elsewhere takes no space here.
    """
    folders = [folder for step in store.glob("*") for folder in step.iterdir() if folder.is_dir()]
    total = 0.0
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        total += sum(file.st_size for file in files if file.st_nlink == 1)
        if total > limit_bytes:
            shutil.rmtree(folder, ignore_errors=True)
