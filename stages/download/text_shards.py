"""Writes columns of text as Parquet shards (id, text, source) in bounded memory, and describes each.

Rows come in batches; about 8 MB of text are gathered into a row group and written, and a new shard
begins after about 64 MB. So the writer holds one row group, whatever the corpus.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.documents import READ_ONCE, SHARD_BYTES, shard_file
from stages.files import file_sha256

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
GROUP_BYTES = 8 << 20


def text_bytes(texts: pa.Array | pa.ChunkedArray) -> int:
    """The bytes of UTF-8 of all texts."""
    return pc.sum(pc.binary_length(texts)).as_py() or 0


class TextShards:
    """Shards `NNNNN.parquet` in a folder.

    Attributes:
        described: {file, rows, bytes, sha256} of each finished shard.
    """

    def __init__(self, folder: Path, first: int = 0):
        self.folder, self.first = folder, first
        self.described: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows with the columns of `SCHEMA`."""
        self._waiting.append(batch)
        self._waiting_bytes += text_bytes(batch["text"])
        if self._waiting_bytes >= GROUP_BYTES:
            self._write_group()
        if self._bytes >= SHARD_BYTES:
            self.finish()

    def finish(self) -> None:
        """Ends the shard that is open, if any."""
        self._write_group()
        if self._writer:
            self._writer.close()
            path = self._path
            described = {"file": path.name, "rows": self._rows, "bytes": self._bytes, "sha256": file_sha256(path)}
            self.described.append(described)
        self._writer, self._rows, self._bytes = None, 0, 0

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.first + len(self.described):05d}.parquet"

    def _write_group(self) -> None:
        if not self._waiting:
            return
        self._writer = self._writer or shard_file(self._path, SCHEMA, READ_ONCE)
        table = pa.Table.from_batches(self._waiting, SCHEMA)
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self._rows, self._bytes = self._rows + len(table), self._bytes + self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
