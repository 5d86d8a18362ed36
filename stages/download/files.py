"""The user's own files: read once to check them, recorded in a manifest, never copied.

The manifest names each file with rows, bytes of text and sha256; `clean` reads the same rows with the
same reader and notices a changed file by its sha256. Example: with max_documents 5 and two files of
3 rows, the manifest records 3 rows of the first and 2 of the second.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.download.params import DownloadParams
from stages.entry import file_sha256
from stages.errors import BadInput
from stages.progress import progress, say
from stages.sources import KINDS, SourceFile, find_files, read_file
from stages.workers import ordered_map


class Limits(NamedTuple):
    """How much may still be taken; 0 means no limit."""

    documents: int
    bytes: int

    def allow(self, documents: int, n_bytes: int) -> bool:
        """Whether `documents` documents of `n_bytes` together stay within the limits."""
        return (not self.documents or documents <= self.documents) and (not self.bytes or n_bytes <= self.bytes)


def manifest_shards(root: Path, download: DownloadParams, n_workers: int) -> list[dict[str, Any]]:
    """{file, name, rows, bytes, sha256} of each file, up to the limits.

    Raises:
        BadInput: no file, a file that cannot be read, or no document at all.
    """
    inputs = root / download.inputs
    files, left_out = find_files(inputs, download.include)
    if left_out:
        say(f"download: {len(left_out)} files of other kinds are left out, such as {left_out[0]}")
    if not files:
        raise BadInput(
            f"{download.inputs}: no document here that matches download.include {download.include!r}; put files "
            f"there ({', '.join(KINDS)}), or set download.source: python_docs"
        )
    limits = Limits(download.max_documents, download.max_bytes)
    scan = partial(_scan, text_column=download.text_column)
    shards: list[dict[str, Any]] = []
    documents = n_bytes = 0
    with progress("download", len(files), "files") as bar:
        for file, (rows, size) in zip(files, ordered_map(scan, files, n_workers), strict=False):
            is_last = not limits.allow(documents + rows, n_bytes + size)
            if is_last:
                rows, size = _scan_up_to(file, download.text_column, limits, documents, n_bytes)
            documents, n_bytes = documents + rows, n_bytes + size
            if rows:
                shards.append(_shard(root, file, rows, size))
            bar.update()
            if is_last:
                break
    return shards


def _shard(root: Path, file: SourceFile, rows: int, size: int) -> dict[str, Any]:
    path = file.path.relative_to(root) if file.path.is_relative_to(root) else file.path
    return {"file": path.as_posix(), "name": file.name, "rows": rows, "bytes": size, "sha256": file_sha256(file.path)}


def _scan(file: SourceFile, text_column: str) -> tuple[int, int]:
    """The number of documents in a file and their UTF-8 bytes."""
    rows = size = 0
    for document in read_file(file, text_column):
        rows, size = rows + 1, size + len(document.text.encode())
    return rows, size


def _scan_up_to(file: SourceFile, text_column: str, limits: Limits, documents: int, n_bytes: int) -> tuple[int, int]:
    """As `_scan`, until the next document would pass a limit."""
    rows = size = 0
    for document in read_file(file, text_column):
        length = len(document.text.encode())
        if not limits.allow(documents + rows + 1, n_bytes + size + length):
            break
        rows, size = rows + 1, size + length
    return rows, size
