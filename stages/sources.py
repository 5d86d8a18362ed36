"""Finds and reads files of documents: the user's own, in the formats that text comes in.

`find_files` says which files there are, `read_file` gives the texts of one, `read_part` those of a part of
one, `read_corpus` gives what the stage `download` recorded, whichever source it was, and `validate` all
that is wrong with a corpus. Example: inputs/news/a.jsonl.gz with 3 lines
gives the documents `news/a.jsonl.gz:1` to `:3` of source `news`; inputs/letter.md gives one document.

Text is strict UTF-8. Bytes that are not, a NUL byte, a truncated archive or a missing column end with one
line that names file and row; nothing is replaced silently. Files are streamed: one row, one batch or
one single-document file is held at a time. Decoding bytes is `formats.py`' work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages import formats
from stages.edited import Stamp, refuse_rewritten
from stages.errors import BadInput
from stages.files import file_sha256
from stages.inputs import problem_of_inputs
from stages.workers import ordered_map

KINDS = {
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")
ONE_DOCUMENT = ("text", "html")
ONLY_PLAIN = ("parquet", "arrow")
MOST_PROBLEMS = 100
SHOWN = 3  # names of files of one other kind


class Document(NamedTuple):
    """A document as it was given. `is_html`: its file says that it is HTML."""

    id: str
    text: str
    source: str
    is_html: bool = False


class SourceFile(NamedTuple):
    """A file of documents: where it is, its name below the folder of inputs, and its stamp when it was found there."""

    path: Path
    name: str
    stamp: Stamp | None = None

    @property
    def compression(self) -> str:
        return self.path.suffix if self.path.suffix in COMPRESSIONS else ""

    @property
    def kind(self) -> str | None:
        """One of the values of `KINDS`, or None for a file that is not of documents."""
        plain_name = Path(self.name).with_suffix("") if self.compression else Path(self.name)
        kind = KINDS.get(plain_name.suffix.lower())
        return None if kind in ONLY_PLAIN and self.compression else kind

    @property
    def source(self) -> str:
        """The first folder; at the top, the name of a table of rows, or `files` for single documents."""
        first = Path(self.name).parts[0]
        if first != self.name:
            return first
        return "files" if self.kind in ONE_DOCUMENT else first.partition(".")[0]


def find_files(inputs: Path, include: str = "**/*") -> tuple[list[SourceFile], list[str]]:
    """The files of documents in the order of their names, and the names of files of other kinds.

    Raises:
        BadInput: `inputs` does not exist, or holds what cannot be read (stages/inputs.py).
    """
    if problem := problem_of_inputs(inputs):
        raise BadInput(problem)
    return files_below(inputs, include)


def files_below(inputs: Path, include: str = "**/*") -> tuple[list[SourceFile], list[str]]:
    """As `find_files`, without what cannot be read."""
    if inputs.is_file():
        found = [SourceFile(inputs, inputs.name, Stamp.of(inputs))]
    elif inputs.is_dir():
        paths = {path.relative_to(inputs).as_posix(): path for path in inputs.glob(include) if path.is_file()}
        names = [name for name in sorted(paths) if not _is_hidden(name)]
        found = [SourceFile(paths[name], name, Stamp.of(paths[name])) for name in names]
    else:
        raise BadInput(f"{inputs}: not found; download.inputs must name a folder or a file")
    files = [file for file in found if file.kind]
    return files, [file.name for file in found if not file.kind]


def _is_hidden(name: str) -> bool:
    return name == "README.md" or any(part.startswith(".") for part in Path(name).parts)


def by_ending(names: Sequence[str]) -> str:
    """Files of other kinds, for people: `2 .pdf (a.pdf, b.pdf), 1 .csv.zip (c.csv.zip), 1 without ending (LICENSE)`."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_ending(Path(name)), []).append(name)
    return ", ".join(
        f"{len(several):,} {ending} ({', '.join(several[:SHOWN])}{', ..' if several[SHOWN:] else ''})"
        for ending, several in sorted(found.items(), key=lambda pair: -len(pair[1]))
    )


def _ending(path: Path) -> str:
    """With the one before it where that says what was packed, as in .parquet.gz."""
    before = Path(path.stem).suffix.lower()
    return (before if before in KINDS else "") + path.suffix.lower() or "without ending"


class Part(NamedTuple):
    """What one piece of work reads of a file of documents.

    Attributes:
        path, name: the file, and its name below the folder of inputs; empty for a shard of the stage download.
        begin, end: bytes of JSON lines, or row groups of Parquet; None: the whole file.
        before: how many rows come before.
        rows: no more documents than these are taken.
        stamp: the file's, when its content was compared with what download had read.
    """

    path: Path
    name: str
    begin: int = 0
    end: int | None = None
    before: int = 0
    rows: int | None = None
    stamp: Stamp | None = None


def read_file(
    file: SourceFile, text_column: str, limit: int = 0, part: Part | None = None, report: formats.Report | None = None
) -> Iterator[Document]:
    """The documents of a file, or of a part of it, in its order. Rows count from 1; a row's id is `name:row`.

    Args:
        limit: the most bytes of a document; 0 = no limit.
        report: takes what is wrong with a JSON line, so that reading goes on with the next.

    Raises:
        BadInput: what cannot be read, with file and row or byte.
    """
    part = part or Part(file.path, file.name)
    for row, text in _numbered(file, text_column, limit, part, report):
        place = f"{file.name}:{row}" if row else file.name
        yield Document(place, text, file.source, file.kind == "html")


def _numbered(
    file: SourceFile, column: str, limit: int, part: Part, report: formats.Report | None
) -> Iterator[formats.NumberedText]:
    """Rows and texts; the row of a file that is one document is 0."""
    path, kind = file.path, file.kind
    if kind in ONLY_PLAIN:
        groups = (part.begin, part.end) if part.end is not None else None
        return formats.arrow_rows(path, kind == "parquet", column, limit, groups, part.before)
    if kind == "jsonl" and part.end is not None:
        chunks = formats.byte_range(path, part.begin, part.end)
        return formats.jsonl_rows(path, chunks, column, limit, (part.begin, part.before))
    chunks = formats.decompressed(path, file.compression)
    if kind in ONE_DOCUMENT:
        return iter([(0, formats.whole_text(path, chunks, limit))])
    if kind == "json":
        return formats.json_rows(path, chunks, column)
    if kind == "csv":
        return formats.csv_rows(path, chunks, column, limit)
    return formats.jsonl_rows(path, chunks, column, limit, report=report)


def read_part(part: Part, text_column: str) -> Iterator[Document]:
    """The documents of a part of a user's file, or of a shard that the stage download wrote.

    Raises:
        Failed: a user's file was edited meanwhile.
    """
    if part.name:
        found = read_file(SourceFile(part.path, part.name), text_column, part=part)
        yield from islice(found, part.rows)
        if part.stamp:
            refuse_rewritten(part.path, part.stamp)
        return
    groups = list(range(part.begin, part.end)) if part.end is not None else None
    try:
        columns = ["id", "text", "source"]
        for batch in pq.ParquetFile(part.path).iter_batches(batch_size=1024, row_groups=groups, columns=columns):
            yield from map(Document, *(batch.column(name).to_pylist() for name in columns))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{part.path}: cannot be read as Parquet ({reason}); run `dvc repro download`") from None


def read_manifest(root: Path) -> dict[str, Any]:
    """data/download/manifest.json."""
    path = root / "data" / "download" / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise BadInput(f"{path.relative_to(root)}: missing or damaged; run `dvc repro download`") from None


def check_unchanged(root: Path, manifest: dict[str, Any], n_workers: int = 1) -> dict[Path, Stamp | None]:
    """Holds every file that `download` recorded against its sha256; returns the stamps of what was compared.

    Raises:
        BadInput: one is gone, or has other content.
    """
    paths = [root / shard["file"] for shard in manifest["shards"]]
    stamps = {path: Stamp.of(path) for path in paths}
    for shard, found in zip(manifest["shards"], ordered_map(_sha256_or_none, paths, n_workers), strict=True):
        if found != shard["sha256"]:
            state = "changed" if found else "removed"
            raise BadInput(
                f"{shard['file']}: {state} after the stage download read it; run `dvc repro`, or, where that does not "
                "read it again, `dvc repro --force --single-item download`"
            )
    return stamps


def _sha256_or_none(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def read_corpus(root: Path) -> Iterator[Document]:
    """Every document that `download` recorded, in its order.

    Raises:
        BadInput: a file that changed after `download` read it.
        Failed: one that changes now.
    """
    manifest = read_manifest(root)
    stamps = check_unchanged(root, manifest)
    for shard in manifest["shards"]:
        path = root / shard["file"]
        part = Part(path, shard.get("name", ""), rows=shard["rows"], stamp=stamps[path])
        yield from read_part(part, manifest.get("text_column", "text"))


class Checked(NamedTuple):
    """What `validate` found in one file: its documents, their bytes, and what is wrong with it, line by line; and how
    many of them have no text, which clean drops, or NUL characters (as JSON's \\u0000), which it takes out."""

    name: str
    documents: int
    bytes: int
    problems: list[str]
    empty: int = 0
    with_nul: int = 0


def validate(inputs: Path, include: str, text_column: str, limit: int = 0, n_workers: int = 1) -> Iterator[Checked]:
    """Reads every file of documents below `inputs` and tells all that is wrong, not only the first.

    In JSON lines every bad row is found; another format says where it cannot be read on. What is no file at all is
    left to `stages.inputs.problems`.

    Raises:
        BadInput: `inputs` does not exist.
    """
    files, _ = files_below(inputs, include)
    yield from ordered_map(partial(check_file, text_column=text_column, limit=limit), files, n_workers)


def check_file(file: SourceFile, text_column: str, limit: int = 0) -> Checked:
    """One file of a corpus; at most `MOST_PROBLEMS` of its problems."""
    problems: list[str] = []
    documents = size = empty = with_nul = 0
    try:
        for document in read_file(file, text_column, limit, report=lambda error: problems.append(str(error))):
            documents, size = documents + 1, size + len(document.text.encode())
            empty, with_nul = empty + (not document.text), with_nul + ("\0" in document.text)
            if len(problems) > MOST_PROBLEMS:
                break
    except BadInput as error:
        problems.append(str(error))
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{file.path}: and more"]
    return Checked(file.name, documents, size, problems, empty, with_nul)
