"""The user's own files: read once to check them, recorded in a manifest, never copied.

The manifest names each file with rows, bytes of text and sha256; `clean` reads the same rows with the
same reader and notices a changed file by its sha256. Example: with max_documents 5 and two files of
3 rows, the manifest records 3 rows of the first and 2 of the second.

Every file is hashed each time, but read as text only if its hash is a new one: a scan is a task, done for
small files in groups (stages/pieces.py). Large files of JSON lines are recorded with `cuts`, places where
they can be cut into pieces of whole lines: [byte, lines before it].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.download.params import DownloadParams
from stages.edited import refuse_rewritten
from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.formats import line_cuts
from stages.pieces import PIECE_BYTES, groups
from stages.progress import say
from stages.sources import KINDS, SourceFile, by_ending, find_files, read_file
from stages.tasks import Task, results
from stages.wording import counted
from stages.workers import ordered_map


class Limits(NamedTuple):
    """How much may still be taken; 0 means no limit."""

    documents: int
    bytes: int

    def allow(self, documents: int, n_bytes: int) -> bool:
        """Whether `documents` documents of `n_bytes` together stay within the limits."""
        return (not self.documents or documents <= self.documents) and (not self.bytes or n_bytes <= self.bytes)


def manifest_shards(job: Job, download: DownloadParams) -> list[dict[str, Any]]:
    """{file, name, rows, bytes, sha256, cuts} of each file, up to the limits.

    Raises:
        BadInput: no file, a file that cannot be read, or no document at all.
        Failed: a file was put there, removed or edited meanwhile.
    """
    files, left_out = find_files(job.root / download.inputs, download.include)
    if left_out:
        say(f"download: left out {counted(len(left_out), 'file')} of other kinds: {by_ending(left_out)}")
    if not files:
        raise BadInput(
            f"{download.inputs}: no document here that matches download.include {download.include!r}; put files "
            f"there ({', '.join(KINDS)}), or set download.source: python_docs"
        )
    limits = Limits(download.max_documents, download.max_bytes)
    shards: list[dict[str, Any]] = []
    documents = n_bytes = 0
    for file, found in zip(files, scans(job, files, download), strict=True):
        is_last = not limits.allow(documents + found["rows"], n_bytes + found["bytes"])
        if is_last:
            rows, size = _scan_up_to(file, download.text_column, limits, documents, n_bytes)
            found = {"rows": rows, "bytes": size, "sha256": found["sha256"], "limited": True}
        documents, n_bytes = documents + found["rows"], n_bytes + found["bytes"]
        if found["rows"]:
            shards.append({"file": _shown(job.root, file.path), "name": file.name, **found})
        if is_last:
            break
    refuse_other_files(files, find_files(job.root / download.inputs, download.include)[0])
    return shards


def refuse_other_files(then: list[SourceFile], now: list[SourceFile]) -> None:
    """Raises Failed if they are not the files that they were."""
    before, after = ({file.path: file.stamp for file in files} for files in (then, now))
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            refuse_rewritten(path, before.get(path))


def _shown(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def scans(job: Job, files: list[SourceFile], download: DownloadParams) -> Iterator[dict[str, Any]]:
    """{rows, bytes, sha256} of each file, and `cuts` where it has some."""
    paths = [file.path for file in files]
    sha256s = dict(zip(paths, ordered_map(file_sha256, paths, job.execution.n_workers()), strict=True))
    sized = ((file, file.name, file.path.stat().st_size) for file in files)
    limit = round(download.max_document_mb * 1e6)
    tasks = [
        Task(
            job.key([[file.kind, file.compression, sha256s[file.path]] for file in group], download.text_column, limit),
            group,
        )
        for group in groups(sized)
    ]
    function = partial(_scan_group, text_column=download.text_column, limit=limit)
    for task, folder in zip(tasks, results(job, "scans", function, tasks, "groups"), strict=True):
        found = json.loads((folder / "scans.json").read_text(encoding="utf-8"))
        yield from ({**scan, "sha256": sha256s[file.path]} for file, scan in zip(task.item, found, strict=True))


def _scan_group(group: list[SourceFile], folder: Path, text_column: str, limit: int) -> None:
    write_json(folder / "scans.json", [_scan(file, text_column, limit) for file in group])


def _scan(file: SourceFile, text_column: str, limit: int) -> dict[str, Any]:
    """The number of documents in a file and their UTF-8 bytes, and where it can be cut.

    Raises:
        Failed: it is no longer the file whose hash names this scan.
    """
    rows = size = 0
    for document in read_file(file, text_column, limit):
        rows, size = rows + 1, size + len(document.text.encode())
    cuts = line_cuts(file.path, PIECE_BYTES) if file.kind == "jsonl" and not file.compression else []
    refuse_rewritten(file.path, file.stamp)
    return {"rows": rows, "bytes": size, **({"cuts": cuts} if cuts else {})}


def _scan_up_to(file: SourceFile, text_column: str, limits: Limits, documents: int, n_bytes: int) -> tuple[int, int]:
    """As `_scan`, until the next document would pass a limit."""
    rows = size = 0
    for document in read_file(file, text_column):
        length = len(document.text.encode())
        if not limits.allow(documents + rows + 1, n_bytes + size + length):
            break
        rows, size = rows + 1, size + length
    return rows, size
