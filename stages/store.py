"""Files that a stage keeps in scratch between runs: linked, not copied, trimmed to a size; and arrays in them.

numpy's own `save` and `tofile` tell of a full disk as "4350 requested and 0 written", without its number.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np


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


def save_array(path: Path, values: np.ndarray) -> None:
    """The bytes of `np.save` of an array in C order; another is put into it.

    Raises:
        OSError: with the system's number, ENOSPC where the disk is full.
    """
    import numpy as np  # here: every stage imports this module at its start

    values = np.ascontiguousarray(values)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        append_array(file, values)


def append_array(file: BinaryIO, values: np.ndarray) -> None:
    """The bytes of `values.tofile`; raises as `save_array` does."""
    import numpy as np

    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
