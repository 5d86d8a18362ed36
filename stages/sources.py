"""Finds and reads files of documents: the user's own, in the formats that text comes in.

`find_files` says which files there are, `read_file` gives the texts of one, `read_corpus` gives what
the stage `download` recorded, whichever source it was. Example: inputs/news/a.jsonl.gz with 3 lines
gives the documents `news/a.jsonl.gz:1` to `:3` of source `news`; inputs/letter.md gives one document.

Text is strict UTF-8. Bytes that are not, a NUL, a truncated archive or a missing column end with one
line that names file and row; nothing is replaced silently. Files are streamed: one row, one batch or
one single-document file is held at a time. Decoding bytes is `formats.py`' work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from stages import formats
from stages.documents import read_shards
from stages.entry import file_sha256
from stages.errors import BadInput

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


class Document(NamedTuple):
    """A document as it was given. `is_html`: its file says that it is HTML."""

    id: str
    text: str
    source: str
    is_html: bool = False


class SourceFile(NamedTuple):
    """A file of documents: where it is, and its name below the folder of inputs."""

    path: Path
    name: str

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
        BadInput: `inputs` does not exist.
    """
    if inputs.is_file():
        found = [SourceFile(inputs, inputs.name)]
    elif inputs.is_dir():
        paths = {path.relative_to(inputs).as_posix(): path for path in inputs.glob(include) if path.is_file()}
        found = [SourceFile(paths[name], name) for name in sorted(paths) if not _is_hidden(name)]
    else:
        raise BadInput(f"{inputs}: not found; download.inputs must name a folder or a file")
    files = [file for file in found if file.kind]
    return files, [file.name for file in found if not file.kind]


def _is_hidden(name: str) -> bool:
    return name == "README.md" or any(part.startswith(".") for part in Path(name).parts)


def read_file(file: SourceFile, text_column: str) -> Iterator[Document]:
    """The documents of one file, in its order. Rows count from 1; a row's id is `name:row`.

    Raises:
        BadInput: what cannot be read, with file and row or byte.
    """
    is_html = file.kind == "html"
    chunks = formats.decompressed(file.path, file.compression)
    if file.kind in ONE_DOCUMENT:
        yield Document(file.name, formats.whole_text(file.path, chunks), file.source, is_html)
        return
    readers = {"json": formats.json_rows, "jsonl": formats.jsonl_rows, "csv": formats.csv_rows}
    if file.kind in ONLY_PLAIN:
        numbered = formats.arrow_rows(file.path, file.kind == "parquet", text_column)
    else:
        numbered = readers[str(file.kind)](file.path, chunks, text_column)
    for row, text in numbered:
        yield Document(f"{file.name}:{row}", text, file.source, is_html)


def read_manifest(root: Path) -> dict[str, Any]:
    """data/download/manifest.json."""
    path = root / "data" / "download" / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise BadInput(f"{path.relative_to(root)}: missing or damaged; run `dvc repro download`") from None


def read_corpus(root: Path) -> Iterator[Document]:
    """Every document that `download` recorded, in its order.

    Raises:
        BadInput: a user's file that changed after `download` read it.
    """
    manifest = read_manifest(root)
    if manifest["source"] != "files":
        for table in read_shards(root / "data" / "download" / "documents", ["id", "text", "source"]):
            for batch in table.to_batches(max_chunksize=1024):
                yield from (Document(**row) for row in batch.to_pylist())
        return
    for shard in manifest["shards"]:
        path = root / shard["file"]
        if not path.is_file() or file_sha256(path) != shard["sha256"]:
            state = "changed" if path.is_file() else "removed"
            raise BadInput(f"{shard['file']}: {state} after the stage download read it; run `dvc repro`")
        yield from islice(read_file(SourceFile(path, shard["name"]), manifest["text_column"]), shard["rows"])
