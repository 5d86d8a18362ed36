"""Decodes bytes of files into texts, strictly: decompression, UTF-8, JSON, CSV, Parquet and Arrow.

Every reader yields (row, text), rows from 1. What cannot be read raises `BadInput` with the place:

    inputs/a.txt: byte 1402 (0xe9) is not UTF-8; convert the file, e.g. iconv -f latin1 -t utf-8
    inputs/b.jsonl.gz: truncated or damaged gzip after 65536 bytes of text; copy the file again
    inputs/c.jsonl: row 17: no column 'text'; it has content, url; set download.text_column

A missing value (null) is an empty text, which the rules of `clean` then count and drop.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages.errors import BadInput

CHUNK_BYTES = 1 << 20
BATCH_ROWS = 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NumberedText = tuple[int, str]


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


def decode(path: Path, data: bytes, offset: int = 0) -> str:
    """Strict UTF-8 without NUL. `offset`: where `data` starts in the (decompressed) file."""
    if (nul := data.find(b"\0")) >= 0:
        raise BadInput(f"{path}: byte {offset + nul} is NUL; this is not a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: byte {offset + error.start} (0x{data[error.start]:02x}) is not UTF-8; "
            "convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None


def whole_text(path: Path, chunks: Iterable[bytes]) -> str:
    """The file as one text, without a byte order mark."""
    return decode(path, b"".join(chunks)).removeprefix("\ufeff")


def lines(path: Path, chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a file with their ends, one at a time; a line may be as long as memory."""
    offset = 0
    parts: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            data = b"".join([*parts, piece, b"\n"])
            yield decode(path, data, offset) if offset else decode(path, data).removeprefix("\ufeff")
            offset, parts = offset + len(data), []
        if rest:
            parts.append(rest)
    if parts:
        data = b"".join(parts)
        yield decode(path, data, offset) if offset else decode(path, data).removeprefix("\ufeff")


def jsonl_rows(path: Path, chunks: Iterable[bytes], column: str) -> Iterator[NumberedText]:
    for row, line in enumerate(lines(path, chunks), 1):
        if line.strip():
            yield row, _text_of(_parse_json(path, line, f"row {row}: "), column, path, row)


def json_rows(path: Path, chunks: Iterable[bytes], column: str) -> Iterator[NumberedText]:
    """A list of objects, or one object."""
    value = _parse_json(path, whole_text(path, chunks), "")
    for row, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield row, _text_of(item, column, path, row)


def _parse_json(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: {place}not valid JSON: {error}") from None


def csv_rows(path: Path, chunks: Iterable[bytes], column: str) -> Iterator[NumberedText]:
    """Rows after the header line; a quoted field may hold line ends."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(lines(path, chunks), strict=True)
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


def arrow_rows(path: Path, is_parquet: bool, column: str) -> Iterator[NumberedText]:
    """Rows of a Parquet file, or of an Arrow file or stream."""
    row = 0
    try:
        schema, batches = _parquet_batches(path, column) if is_parquet else _arrow_batches(path)
        if column not in schema.names:
            raise _no_column(str(path), column, schema.names)
        _check_string(path, column, schema.field(column).type)
        for batch in batches:
            for value in batch.column(column):
                row += 1
                yield row, value.as_py() or ""
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: row {row}: byte {error.start} of {column!r} is not UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: after row {row}: truncated or not {kind} ({reason})") from None


def _parquet_batches(path: Path, column: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    file = pq.ParquetFile(path)
    return file.schema_arrow, file.iter_batches(batch_size=BATCH_ROWS, columns=[column])


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
    return BadInput(f"{place}: no column {column!r}; it has {', '.join(map(str, names))}; set download.text_column")
