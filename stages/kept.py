"""The documents that dedup kept, shard by shard of clean, without holding the list of their ids.

keep.parquet may list a billion ids; here each becomes its xxh3-64, 8 bytes, sorted. A document of a
shard is kept if its id's hash is among them, and in the end as many must have been found as were
listed: a list of other documents, or two ids with one hash, cannot pass.

A part is what one task works on: a shard, named by its content and by which of its rows are kept. A
change of one file of the corpus so changes one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from stages.documents import shard_paths
from stages.errors import BadInput
from stages.files import content_hash
from stages.wording import counted

BATCH_ROWS = 1024
LIST_ROWS = 1 << 16


class Part(NamedTuple):
    """A shard of clean and which of its rows are kept (bits, first row in the highest bit)."""

    path: Path
    digest: str
    n_rows: int
    kept: bytes

    def mask(self) -> npt.NDArray[np.bool_]:
        return np.unpackbits(np.frombuffer(self.kept, np.uint8), count=self.n_rows).astype(np.bool_)

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The kept rows, about a thousand at a time."""
        mask, row = self.mask(), 0
        for batch in _record_batches(self.path, columns, BATCH_ROWS):
            yield batch.filter(pa.array(mask[row : row + batch.num_rows]))
            row += batch.num_rows


def kept_parts(clean: Path, keep: Path) -> list[Part]:
    """The parts of the corpus, in the order of the shards.

    Args:
        clean: the folder data/clean/documents.
        keep: the file data/dedup/keep.parquet, whose column `id` lists what stays.

    Raises:
        BadInput: a file cannot be read, or the list names a document that is not there.
    """
    listed = np.sort(np.concatenate([_hashes(batch) for batch in _record_batches(keep, ["id"], LIST_ROWS)] or [_EMPTY]))
    parts, n_kept = [], 0
    for path in shard_paths(clean):
        masks = [_among(_hashes(batch), listed) for batch in _record_batches(path, ["id"], LIST_ROWS)]
        mask = np.concatenate(masks or [np.zeros(0, np.bool_)])
        n_kept += int(mask.sum())
        parts.append(Part(path, content_hash(path), len(mask), np.packbits(mask).tobytes()))
    if n_kept != len(listed):
        raise BadInput(
            f"{keep}: lists {counted(len(listed), 'document')}, of which {n_kept:,} stand in {clean}; "
            "run `dvc repro dedup`"
        )
    return parts


_EMPTY = np.empty(0, np.uint64)


def _hashes(batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    ids = batch.column(0).to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids))


def _among(hashes: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if not len(listed):
        return np.zeros(len(hashes), np.bool_)
    places = np.searchsorted(listed, hashes)
    return listed[np.minimum(places, len(listed) - 1)] == hashes


def _record_batches(path: Path, columns: list[str], n_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in small batches.

    Raises:
        BadInput: it cannot be read, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise BadInput(f"{path}: no column {missing[0]!r}; remove it and run `dvc repro`")
            for batch in file.iter_batches(batch_size=n_rows, columns=columns, use_threads=False):
                yield batch.select(columns)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path}: cannot be read as Parquet ({reason}); remove it and run `dvc repro`") from None
