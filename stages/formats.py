"""Reads texts out of files, strictly: decompression, UTF-8 (decoding.py), JSON, CSV, Parquet and Arrow.

Every reader yields (row, text), rows from 1. What cannot be read raises `BadInput` with the place:

    inputs/a.txt: byte 1402 (0xe9) is not UTF-8; convert the file, e.g. iconv -f latin1 -t utf-8
    inputs/b.jsonl.gz: truncated or damaged gzip after 65536 bytes of text; copy the file again
    inputs/c.jsonl: row 17: no column 'text'; it has content, url; set download.text_column

A missing value (null) is an empty text, which the rules of `clean` then count and drop. A document longer
than `limit` bytes is refused before it is in memory twice; 0 is no limit.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages.decoding import decode
from stages.errors import BadInput
from stages.pieces import even_step

CHUNK_BYTES = 1 << 20
BATCH_ROWS = 1024
NumberedText = tuple[int, str]
Report = Callable[[BadInput], None]
"""Takes what is wrong with a row, so that reading can go on with the next."""


def decompressed(path: Path, compression: str) -> Iterator[bytes]:
    """The bytes of a file in chunks. `compression` is "", ".gz" or ".zst"."""
    total = 0
    try:
        if compression == ".zst":
            chunks = _zstd_chunks(path)
        else:
            chunks = _chunks(path, is_gzip=bool(compression))
        for chunk in chunks:
            total += len(chunk)
            yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError):
        name = {".gz": "gzip", ".zst": "zstd"}[compression]
        raise BadInput(
            f"{path}: truncated or damaged {name} after {total} bytes of text; copy the file again"
        ) from None


def byte_range(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of a plain file from `begin` to before `end`, in chunks."""
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (chunk := file.read(min(CHUNK_BYTES, end - begin))):
            begin += len(chunk)
            yield chunk


def line_cuts(path: Path, most: int) -> list[tuple[int, int]]:
    """Where a plain file can be cut into equal pieces of whole lines, about `most` bytes or less: (byte, lines before
    it)."""
    cuts: list[tuple[int, int]] = []
    place = n_lines = 0
    wanted = step = even_step(path.stat().st_size, most)
    for chunk in _chunks(path, is_gzip=False):
        while place + len(chunk) > wanted and (end := chunk.find(b"\n", max(0, wanted - place))) >= 0:
            cuts.append((place + end + 1, n_lines + chunk.count(b"\n", 0, end + 1)))
            wanted = place + end + 1 + step
        place, n_lines = place + len(chunk), n_lines + chunk.count(b"\n")
    return [cut for cut in cuts if cut[0] < place]


def _chunks(path: Path, is_gzip: bool) -> Iterator[bytes]:
    with gzip.open(path) if is_gzip else path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """All frames of a file. zstandard's own reader takes a truncated frame for a complete one."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    inside = False
    for data in _chunks(path, is_gzip=False):
        while data:
            inside = True
            text = frame.decompress(data)
            if text:
                yield text
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    if inside:
        raise EOFError


def whole_text(path: Path, chunks: Iterable[bytes], limit: int = 0) -> str:
    """The file as one text, without a byte order mark."""
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if limit and size > limit:
            raise _too_long(f"{path}", limit)
    return decode(path, b"".join(parts)).removeprefix("\ufeff")


def _too_long(place: str, limit: int) -> BadInput:
    return BadInput(
        f"{place}: a document of more than {limit / 1e6:g} MB; cut it into several, or raise download.max_document_mb"
    )


def lines(
    path: Path, chunks: Iterable[bytes], limit: int = 0, offset: int = 0, row: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and its bytes with the line end. `offset`, `row`: bytes and lines before these chunks."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            row += 1
            if limit and size + len(piece) > limit:
                raise _too_long(f"{path}: row {row}", limit)
            data = b"".join([*parts, piece, b"\n"])
            yield offset, data
            offset, parts, size = offset + len(data), [], 0
        if rest:
            parts.append(rest)
            size += len(rest)
            if limit and size > limit:
                raise _too_long(f"{path}: row {row + 1}", limit)
    if parts:
        yield offset, b"".join(parts)


def _decoded(path: Path, offset: int, line: bytes, place: str) -> str:
    text = decode(path, line, offset, place)
    return text if offset else text.removeprefix("\ufeff")


def jsonl_rows(
    path: Path,
    chunks: Iterable[bytes],
    column: str,
    limit: int = 0,
    before: tuple[int, int] = (0, 0),
    report: Report | None = None,
) -> Iterator[NumberedText]:
    """Rows of JSON lines. `before`: bytes and lines before these chunks; `report`: goes on after a bad row."""
    for row, (offset, line) in enumerate(lines(path, chunks, limit, *before), before[1] + 1):
        try:
            text = _decoded(path, offset, line, f"row {row}: ")
            if text.strip():
                yield row, _text_of(_parse_json(path, text, f"row {row}: "), column, path, row)
        except BadInput as error:
            if report is None:
                raise
            report(error)


def json_rows(path: Path, chunks: Iterable[bytes], column: str) -> Iterator[NumberedText]:
    """A list of objects, or one object. The whole file is in memory: JSON lines are the form for much text."""
    value = _parse_json(path, whole_text(path, chunks), "")
    for row, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield row, _text_of(item, column, path, row)


def _parse_json(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: {place}not valid JSON: {error}") from None


def csv_rows(path: Path, chunks: Iterable[bytes], column: str, limit: int = 0) -> Iterator[NumberedText]:
    """Rows after the header line; a quoted field may hold line ends."""
    csv.field_size_limit(limit or 2**31 - 1)
    numbered = enumerate(lines(path, chunks, limit), 1)
    decoded = (_decoded(path, offset, line, f"line {number}: ") for number, (offset, line) in numbered)
    reader = csv.DictReader(decoded, strict=True)
    row = 0
    try:
        for row, values in enumerate(reader, 1):
            if None in values or None in values.values():
                raise BadInput(
                    f"{path}: row {row} (line {reader.line_num}): its fields do not match the header's "
                    f"{len(reader.fieldnames or [])}; quote fields that hold commas"
                )
            yield row, _text_of(values, column, path, row)
    except csv.Error as error:
        raise BadInput(f"{path}: row {row + 1} (line {reader.line_num}): not valid CSV: {error}") from None


def _text_of(values: Any, column: str, path: Path, row: int) -> str:
    """The text in the column of a row, which must be a string that UTF-8 can hold."""
    if not isinstance(values, dict):
        raise BadInput(f"{path}: row {row}: must be an object with the key {column!r}, not {type(values).__name__}")
    if column not in values:
        raise _no_column(f"{path}: row {row}", column, list(values))
    text = values[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadInput(f"{path}: row {row}: {column!r} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: row {row}: character {error.start} of {column!r} is a lone surrogate") from None
    return text


def arrow_rows(
    path: Path, is_parquet: bool, column: str, limit: int = 0, groups: tuple[int, int] | None = None, row: int = 0
) -> Iterator[NumberedText]:
    """Rows of a Parquet file (or of some of its row groups, after `row` rows), or of an Arrow file or stream."""
    try:
        schema, batches = _parquet_batches(path, column, groups) if is_parquet else _arrow_batches(path)
        if column not in schema.names:
            raise _no_column(str(path), column, schema.names)
        _check_string(path, column, schema.field(column).type)
        for batch in batches:
            for value in batch.column(column):
                row += 1
                text = value.as_py() or ""
                if limit and len(text) > limit:
                    raise _too_long(f"{path}: row {row}", limit)
                yield row, text
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: row {row}: byte {error.start} of {column!r} is not UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: after row {row}: truncated or not {kind} ({reason})") from None


def parquet_cuts(path: Path, column: str, most: int) -> tuple[list[tuple[int, int]], int]:
    """Where a Parquet file can be cut into row groups of equal size, about `most` bytes of text or less, (group, rows
    before it), and how many groups it has."""
    try:
        metadata = pq.ParquetFile(path).metadata
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: truncated or not Parquet ({str(error).splitlines()[0]})") from None
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [
        sum(
            chunk.total_uncompressed_size
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema == column
        )
        for group in groups
    ]
    step, cuts, size, rows = even_step(sum(sizes), most), [], 0, 0
    for number, group in enumerate(groups):
        if size >= step:
            cuts.append((number, rows))
            size = 0
        rows += group.num_rows
        size += sizes[number]
    return cuts, len(groups)


def _parquet_batches(
    path: Path, column: str, groups: tuple[int, int] | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    file = pq.ParquetFile(path)
    numbers = list(range(*groups)) if groups else None
    columns = [column] if column in file.schema_arrow.names else None
    return file.schema_arrow, file.iter_batches(batch_size=BATCH_ROWS, columns=columns, row_groups=numbers)


def _arrow_batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _check_string(path: Path, column: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise BadInput(f"{path}: column {column!r} is of type {kind}; it must be a string")


def _no_column(place: str, column: str, names: list[str]) -> BadInput:
    return BadInput(
        f"{place}: no column {column!r}; it has {', '.join(map(str, names))}; set download.text_column, or `column` "
        "where params.yaml names the file itself"
    )
