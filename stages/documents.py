"""Documents as Parquet shards: `NNNNN.parquet` with at least the columns id and text.

Shards are cut by bytes of text, not by worker, so their bytes do not depend on how they were made.
Readers go shard by shard and hold one shard at a time.

Clean text is packed with LZ4: dedup reads it twice, tokenizer once, pack three times or more (pack/encode.py, twice
pack/leaks.py, pack/decontaminate.py), and it is unpacked in half the time of zstd, for 1.4 times its bytes
(docs/data.md). What download writes is read once, verdicts by no stage: these are packed with zstd. A dictionary of
values that do not repeat, texts and ids, would be built to be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import BadInput

SHARD_BYTES = 64 << 20
GROUP_BYTES = 4 << 20  # of text in a row group, so that a shard can be cut into pieces of work
READ_OFTEN, READ_ONCE = "lz4", "zstd"
DISTINCT = ("id", "text")


class ShardWriter:
    """Writes rows (dictionaries of plain values) into numbered shards of about `SHARD_BYTES` of text."""

    def __init__(self, folder: Path, schema: pa.Schema, compression: str):
        self.folder, self.schema, self.compression = folder, schema, compression
        self.rows: list[dict] = []
        self.pending_bytes = 0
        self.n_shards = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.pending_bytes += sum(len(value) for value in row.values() if isinstance(value, str))
        if self.pending_bytes >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        path = self.folder / f"{self.n_shards:05d}.parquet"
        write_documents(pa.Table.from_pylist(self.rows, self.schema), path, self.compression)
        self.rows, self.pending_bytes, self.n_shards = [], 0, self.n_shards + 1

    def close(self) -> None:
        """Writes what is left; a folder always gets at least one shard, so that readers find a schema."""
        if self.rows or self.n_shards == 0:
            self._flush()


def shard_file(path: Path, schema: pa.Schema, compression: str) -> pq.ParquetWriter:
    """A new shard; `compression` is `READ_OFTEN` or `READ_ONCE`."""
    repeating = [name for name in schema.names if name not in DISTINCT]
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=repeating)


def write_documents(table: pa.Table, path: Path, compression: str) -> None:
    """A whole shard, in row groups of about `GROUP_BYTES`."""
    rows = max(1, len(table) * GROUP_BYTES // max(table.nbytes, 1))
    with shard_file(path, table.schema, compression) as file:
        file.write_table(table, row_group_size=rows)


def shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise BadInput(f"{folder}: no Parquet shard here; run the stage that writes it (`dvc repro`)")
    return paths


def read_shards(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """One table a shard, in the order of their names.

    Raises:
        BadInput: a shard that cannot be read, by name.
    """
    for path in shard_paths(folder):
        yield read_parquet(path, columns)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file.

    Raises:
        BadInput: it cannot be read, or lacks a column.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path}: cannot be read as Parquet ({reason}); remove it and run `dvc repro`") from None


def read_table(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All shards as one table."""
    return pa.concat_tables(read_shards(folder, columns))


def kept_shards(clean: Path, keep: Path, columns: list[str]) -> Iterator[pa.Table]:
    """The documents that dedup kept, one table per shard of `clean`, in the order of their shards.

    Args:
        clean: the folder data/clean/documents.
        keep: the file data/dedup/keep.parquet, whose column `id` lists what stays.
    """
    kept_ids = read_parquet(keep, ["id"]).column("id")
    for table in read_shards(clean, sorted({*columns, "id"})):
        mask = pc.is_in(table.column("id"), value_set=kept_ids.combine_chunks())
        yield table.filter(mask).select(columns)
