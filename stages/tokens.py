"""Packed rows of tokens as Arrow shards, memory-mapped, and the order in which training reads them.

A document of tokens t1..tn is read as inputs <|endoftext|> t1 .. tn with labels t1 .. tn
<|endoftext|>: n + 1 pairs, all of which count. A row has T slots and holds segments of documents
side by side. Example with T = 8, E for end-of-text, and documents `a b` and `c d e`:

    input_ids  E a b E c d e .      lengths  [3, 4]     (the last slot is padding)
    labels     a b E c d e E .      next_ids [E, E]

The label of a slot is the input of the next one, except at the end of a segment, where `next_ids`
has it: end-of-text where the document ends, its next token where a long document was cut. So no
token is lost at a cut, no false end-of-text is learned, and padding is never a label.

Beside the shards, index.json says what they are and has the sha256 of each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import BadInput

INDEX_VERSION = 1
IGNORED_LABEL = -100
NO_SEGMENT = -1


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows ready for the model; int64 arrays [B, T].

    Attributes:
        labels: -100 where a slot is padding.
        segments: 0, 1, 2.. within each row, -1 where a slot is padding.
        positions: from 0 in each segment.
    """

    inputs: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def row_schema(context_length: int, vocab_size: int) -> pa.Schema:
    token = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        [
            ("input_ids", pa.list_(token, context_length)),
            ("lengths", pa.list_(pa.int32())),
            ("next_ids", pa.list_(token)),
            ("documents", pa.list_(pa.int64())),
            ("offsets", pa.list_(pa.int64())),
        ]
    )


class TokenRows:
    """The rows of one split, read from memory-mapped shards without a copy.

    Raises:
        BadInput: an index that is missing or from another version, or a shard that is not whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder / 'index.json'}: {error}; run `dvc repro pack`") from None
        if self.index["version"] != INDEX_VERSION:
            raise BadInput(f"{folder}: version {self.index['version']} of the row format; run `dvc repro pack`")
        self.context_length: int = self.index["context_length"]
        self.vocab_size: int = self.index["vocab_size"]
        tables = [self._open(shard) for shard in self.index["shards"]]
        self.n_rows = sum(table.num_rows for table in tables)
        self._shards = [_Shard(table, self.context_length) for table in tables]
        self._first_rows = np.cumsum([0, *(table.num_rows for table in tables)])

    def _open(self, shard: dict[str, Any]) -> pa.Table:
        path = self.folder / shard["file"]
        try:
            if path.stat().st_size != shard["bytes"]:
                raise BadInput(
                    f"{path}: {path.stat().st_size} bytes, not {shard['bytes']}: the shard is not whole; "
                    "remove it and run `dvc checkout`, or `dvc repro --force --single-item pack`"
                )
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise BadInput(f"{path}: {error}; run `dvc checkout` or `dvc repro pack`") from None
        if table.num_rows != shard["rows"]:
            raise BadInput(f"{path}: {table.num_rows} rows, not {shard['rows']}; run `dvc repro pack`")
        return table

    def batch(self, row_ids: np.ndarray) -> Batch:
        """The rows with these numbers, in this order."""
        shape = (len(row_ids), self.context_length)
        inputs = np.empty(shape, np.int64)
        labels = np.full(shape, IGNORED_LABEL, np.int64)
        segments = np.full(shape, NO_SEGMENT, np.int64)
        positions = np.zeros(shape, np.int64)
        for i, row_id in enumerate(row_ids):
            shard, row = self._locate(int(row_id))
            lengths, next_ids = shard.segments(row)
            inputs[i] = shard.input_ids[row]
            filled, ends = lengths.sum(), np.cumsum(lengths)
            labels[i, : filled - 1] = inputs[i, 1:filled]
            labels[i, ends - 1] = next_ids
            segments[i, :filled] = np.repeat(np.arange(len(lengths)), lengths)
            positions[i, :filled] = np.arange(filled) - np.repeat(ends - lengths, lengths)
        return Batch(inputs, labels, segments, positions)

    def segment_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per segment in the order of rows: its row, its document, its length; int64 arrays."""
        rows, documents, lengths = [], [], []
        for first, shard in zip(self._first_rows, self._shards, strict=False):
            counts = np.diff(shard.boundaries)
            rows.append(first + np.repeat(np.arange(len(counts)), counts))
            documents.append(shard.documents)
            lengths.append(shard.lengths.astype(np.int64))
        return np.concatenate(rows), np.concatenate(documents), np.concatenate(lengths)

    def documents(self) -> Iterator[np.ndarray]:
        """Each document's labels t1 .. tn and end-of-text, whole, in the order of documents."""
        places: dict[int, list[tuple[int, _Shard, int, int]]] = {}
        for shard in self._shards:
            for row in range(len(shard.input_ids)):
                start = 0
                for s in range(shard.boundaries[row], shard.boundaries[row + 1]):
                    places.setdefault(int(shard.documents[s]), []).append((int(shard.offsets[s]), shard, row, start))
                    start += int(shard.lengths[s])
        for document in sorted(places):
            yield np.concatenate([shard.labels(row, start) for _, shard, row, start in sorted(places[document], key=lambda p: p[0])])

    def _locate(self, row_id: int) -> tuple[_Shard, int]:
        shard = int(np.searchsorted(self._first_rows, row_id, side="right")) - 1
        return self._shards[shard], row_id - int(self._first_rows[shard])


class _Shard:
    """Numpy views of one memory-mapped table."""

    def __init__(self, table: pa.Table, context_length: int):
        table = table.combine_chunks()

        def flat(name: str) -> np.ndarray:
            column = table.column(name)
            if not column.num_chunks:
                return np.empty(0, np.int64)
            return column.chunk(0).flatten().to_numpy(zero_copy_only=True)

        self.input_ids = flat("input_ids").reshape(-1, context_length)
        self.lengths, self.next_ids = flat("lengths"), flat("next_ids")
        self.documents, self.offsets = flat("documents"), flat("offsets")
        lists = table.column("lengths")
        self.boundaries = lists.chunk(0).offsets.to_numpy() if lists.num_chunks else np.zeros(1, np.int64)

    def segments(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = self.boundaries[row], self.boundaries[row + 1]
        return self.lengths[first:last].astype(np.int64), self.next_ids[first:last].astype(np.int64)

    def labels(self, row: int, start: int) -> np.ndarray:
        """The labels of the segment of this row that begins at slot `start`."""
        lengths, next_ids = self.segments(row)
        segment = int(np.searchsorted(np.cumsum(lengths) - lengths, start))
        inside = self.input_ids[row, start + 1 : start + lengths[segment]].astype(np.int64)
        return np.append(inside, next_ids[segment])


def data_order(n_rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Row ids at positions start .. start + count of the endless training order, int64.

    Every epoch is a permutation of all rows of its own. It is computed, not stored: a Feistel network
    over the smallest even number of bits that can count the rows, walked until it lands on a row
    (Black and Rogaway, 2002). So the order is a pure function of seed and position; resuming at any
    step costs nothing, and ranks, accumulation and workers cannot change it.
    """
    positions = np.arange(start, start + count, dtype=np.uint64)
    epochs, places = np.divmod(positions, np.uint64(n_rows))
    half_bits = max(1, (max(n_rows - 1, 1).bit_length() + 1) // 2)
    rows = _feistel(places, epochs, seed, half_bits)
    while (outside := rows >= n_rows).any():
        rows[outside] = _feistel(rows[outside], epochs[outside], seed, half_bits)
    return rows.astype(np.int64)


def _feistel(values: np.ndarray, epochs: np.ndarray, seed: int, half_bits: int) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for round_number in range(4):
        key = np.uint64((seed * 0x9E3779B97F4A7C15 + round_number * 0xD1B54A32D192ED03) % 2**64)
        left, right = right, left ^ (_mix(right + _mix(epochs + key)) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al., 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
