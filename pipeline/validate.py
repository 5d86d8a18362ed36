"""Reads a whole corpus before a run and names every file and row that cannot be used, not only the first.

A table of lines (jsonl) goes on after a bad line; any other file ends at its first mistake, and the next
file is read. Reading is that of the stages, so what passes here passes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stages import formats
from stages.errors import BadInput
from stages.sources import SourceFile, read_file


class Checked(NamedTuple):
    """A file: what it holds, and what is wrong in it, a line each."""

    file: str
    documents: int
    bytes: int
    problems: list[str]


def check_file(file: SourceFile, text_column: str) -> Checked:
    """Reads all of a file."""
    documents = n_bytes = 0
    problems: list[str] = []
    try:
        for item in _texts(file, text_column):
            if isinstance(item, BadInput):
                problems.append(str(item))
            else:
                documents, n_bytes = documents + 1, n_bytes + len(item.encode())
    except BadInput as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{file.path}: {error.strerror}")
    return Checked(file.name, documents, n_bytes, problems)


def _texts(file: SourceFile, text_column: str) -> Iterator[str | BadInput]:
    if file.kind != "jsonl":
        yield from (document.text for document in read_file(file, text_column))
        return
    for row, line in enumerate(_lines(formats.decompressed(file.path, file.compression)), 1):
        try:
            for _, text in formats.jsonl_rows(file.path, [line], text_column):
                yield text
        except BadInput as error:  # counted from the line, which stands alone here
            yield BadInput(_placed(str(error), file.path, row))


def _placed(problem: str, path: Path, row: int) -> str:
    """The problem of a single line, named by its row in the file."""
    what = problem.removeprefix(f"{path}: ").removeprefix("row 1: ")
    return f"{path}: row {row}: {what}"


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*parts, line, b"\n"])
            parts = []
        parts.append(rest)
    if any(parts):
        yield b"".join(parts)
