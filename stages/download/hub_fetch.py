"""Downloads one file of a dataset on the hub and keeps its texts as Parquet shards.

What comes is compared with the hash that the hub announced. A connection that breaks off is taken up
again where it was, by the hub's own library. The columns beside the text are not kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import formats
from stages.download.hub import unusable
from stages.download.params import DownloadParams
from stages.download.text_shards import SCHEMA, TextShards
from stages.errors import BadInput
from stages.files import file_sha256
from stages.sources import SourceFile

BATCH_ROWS = 1000
SHA256_DIGITS = 64


class HubFile(NamedTuple):
    """A file of the dataset; `digest` is its sha256 if the hub says it, else git's hash of it."""

    path: str
    size: int
    digest: str


def fetch_file(file: HubFile, folder: Path, download: DownloadParams) -> None:
    """Downloads a file and writes its texts as shards and shards.json.

    Raises:
        BadInput: the hub does not give it, it is not the one that was announced, or it cannot be read.
    """
    place = folder / "raw"
    path = _downloaded(file, download, place)
    shards = TextShards(folder)
    for batch in _batches(file, path, download):
        shards.add(batch)
    shards.finish()
    (folder / "shards.json").write_text(json.dumps(shards.described))
    shutil.rmtree(place)


def _downloaded(file: HubFile, download: DownloadParams, place: Path) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with unusable(download, file.path):
        name, commit = download.dataset, download.revision
        found = HfApi().hf_hub_download(name, file.path, repo_type="dataset", revision=commit, local_dir=place)
    path = Path(found)
    if (file_sha256(path) if len(file.digest) == SHA256_DIGITS else _git_hash(path)) != file.digest:
        size = path.stat().st_size
        raise BadInput(
            f"{download.dataset}/{file.path}: what came ({size:,} bytes) is not the file that the hub announced "
            f"({file.size:,} bytes, {file.digest[:12]}); the same command downloads it again"
        )
    return path


def _git_hash(path: Path) -> str:
    data = path.read_bytes()  # a small file: the hub names large ones by their sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _batches(file: HubFile, path: Path, download: DownloadParams) -> Iterator[pa.RecordBatch]:
    """The rows of a file as id, text and source; a missing text is empty."""
    place = f"{download.dataset}/{file.path}"
    is_parquet = SourceFile(path, file.path).kind == "parquet"
    groups = _parquet_texts(path, place, download) if is_parquet else _row_texts(file, path, download)
    for rows, texts in groups:
        ids = pa.array([f"{place}:{row}" for row in rows], pa.string())
        yield pa.record_batch([ids, texts, pa.repeat(download.dataset, len(texts))], schema=SCHEMA)


def _parquet_texts(path: Path, place: str, download: DownloadParams) -> Iterator[tuple[range, pa.Array]]:
    column, row = download.text_column, 1
    try:
        with pq.ParquetFile(path) as opened:
            schema = opened.schema_arrow
            if column not in schema.names:
                has = ", ".join(schema.names)
                raise BadInput(f"{place}: no column {column!r}; it has {has}; set download.text_column")
            for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                texts = pc.fill_null(batch.column(0), "").cast(pa.string())
                texts.validate(full=True)
                yield range(row, row + len(texts)), texts
                row += len(texts)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{place}: after row {row - 1}: {str(error).splitlines()[0]}") from None


def _row_texts(file: HubFile, path: Path, download: DownloadParams) -> Iterator[tuple[list[int], pa.Array]]:
    """Rows of Arrow or JSON. `.json` is one list, or an object a line as `datasets` writes it."""
    named, place = SourceFile(path, file.path), Path(download.dataset) / file.path
    if named.kind == "arrow":
        numbered = formats.arrow_rows(path, False, download.text_column)
    else:
        first = next((chunk.lstrip()[:1] for chunk in formats.decompressed(path, named.compression)), b"")
        rows = formats.json_rows if named.kind == "json" and first == b"[" else formats.jsonl_rows
        numbered = rows(place, formats.decompressed(path, named.compression), download.text_column)
    while group := list(islice(numbered, BATCH_ROWS)):
        yield [row for row, _ in group], pa.array([text for _, text in group], pa.string())
