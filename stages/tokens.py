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
    """Rows ready for the model; integer arrays [B, T].

    Attributes:
        labels: -100 where a slot is padding.
        segments: 0, 1, 2.. within each row, -1 where a slot is padding.
        positions: from 0 in each segment.
    """

    inputs: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: uint16 up to 65,536 of them, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def row_schema(context_length: int, vocab_size: int) -> pa.Schema:
    token = pa.from_numpy_dtype(token_dtype(vocab_size))
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
        self.index: dict[str, Any] = _read_index(folder / "index.json")
        self.context_length: int = self.index["context_length"]
        self.vocab_size: int = self.index["vocab_size"]
        self._parts = [part for shard in self.index["shards"] for part in self._open(shard)]
        self._first_rows = np.cumsum([0, *(len(part.input_ids) for part in self._parts)])
        self.n_rows = int(self._first_rows[-1])
        self._filled: np.ndarray | None = None

    def _open(self, shard: dict[str, Any]) -> list[_Part]:
        path = self.folder / shard["file"]
        mend = "remove it and run `dvc checkout`, or `dvc repro --force --single-item pack`"
        try:
            if path.stat().st_size != shard["bytes"]:
                raise BadInput(
                    f"{path}: {path.stat().st_size} bytes, not {shard['bytes']}: the shard is not whole; {mend}"
                )
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)  # numpy views would follow a wrong offset to anywhere
            same_kind = reader.schema == row_schema(self.context_length, self.vocab_size)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}; {mend}") from None
        except (pa.ArrowException, ValueError) as error:
            raise BadInput(f"{path}: not an Arrow file ({error}); {mend}") from None
        nulls = any(column.null_count for batch in batches for column in batch.columns)
        if not same_kind or nulls or sum(batch.num_rows for batch in batches) != shard["rows"]:
            raise BadInput(f"{path}: not the shard of {shard['rows']} rows that index.json names; {mend}")
        return [_Part(batch, self.context_length) for batch in batches]

    def batch(self, row_ids: np.ndarray, dtype: type[np.signedinteger] = np.int64) -> Batch:
        """The rows with these numbers, in this order; who copies them on may want a narrower `dtype`.

        No Python for each row: what a segment has once is repeated over its slots. The padding of a row is one more
        segment, with number -1 and no label.
        """
        inputs, counts, lengths, next_ids = self._gather(row_ids, dtype)
        last = np.cumsum(counts + 1) - 1  # where the padding of each row stands among segments
        first = last - counts
        lengths[last] = self.context_length - np.add.reduceat(lengths, first) if len(row_ids) else 0
        numbers = np.arange(len(lengths)) - np.repeat(first, counts + 1)
        numbers[last] = NO_SEGMENT
        ends = np.cumsum(lengths)
        labels = np.empty(inputs.size, dtype)
        labels[:-1] = inputs.reshape(-1)[1:]
        real = numbers != NO_SEGMENT
        labels[ends[real] - 1] = next_ids[real]
        segments = np.repeat(numbers.astype(dtype), lengths)
        positions = np.arange(inputs.size, dtype=dtype)
        positions -= np.repeat((ends - lengths).astype(dtype), lengths)
        padding = _runs(ends[last] - lengths[last], lengths[last])
        labels[padding], positions[padding] = IGNORED_LABEL, 0
        return Batch(inputs, *(array.reshape(inputs.shape) for array in (labels, segments, positions)))

    def _gather(self, row_ids: np.ndarray, dtype: type[np.signedinteger]) -> tuple[np.ndarray, ...]:
        """Inputs [B, T] and the number of segments of each row; of all segments lengths and next ids, with a place
        of its own behind each row for the padding."""
        parts = np.searchsorted(self._first_rows, row_ids, side="right") - 1
        rows = row_ids - self._first_rows[parts]
        groups = [(self._parts[number], np.flatnonzero(parts == number)) for number in np.unique(parts)]
        inputs = np.empty((len(row_ids), self.context_length), dtype)
        begins, counts = np.empty((2, len(row_ids)), np.int64)
        for part, here in groups:
            inputs[here] = part.input_ids[rows[here]]
            begins[here] = part.boundaries[rows[here]]
            counts[here] = part.boundaries[rows[here] + 1] - begins[here]
        places = np.cumsum(counts + 1) - counts - 1
        lengths, next_ids = np.zeros((2, int(counts.sum()) + len(counts)), np.int64)
        for part, here in groups:
            place, source = _runs(places[here], counts[here]), _runs(begins[here], counts[here])
            lengths[place], next_ids[place] = part.lengths[source], part.next_ids[source]
        return inputs, counts, lengths, next_ids

    def n_labels(self, row_ids: np.ndarray) -> int:
        """The labels of these rows: their slots that are not padding."""
        if self._filled is None:
            self._filled = np.concatenate([np.zeros(0, np.int32), *(part.filled() for part in self._parts)])
        return int(self._filled[row_ids].sum(dtype=np.int64))

    def origins(self, row_id: int) -> tuple[list[int], list[int]]:
        """The document of each segment of a row, and the slot of the document that the segment begins with."""
        part, row = self._locate(row_id)
        first, last = part.boundaries[row], part.boundaries[row + 1]
        return part.documents[first:last].tolist(), part.offsets[first:last].tolist()

    def segment_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per segment in the order of rows: its row, its document, its length; int64 arrays."""
        rows, documents, lengths = [], [], []
        for first, part in zip(self._first_rows, self._parts, strict=False):
            counts = np.diff(part.boundaries)
            rows.append(first + np.repeat(np.arange(len(counts)), counts))
            documents.append(part.documents)
            lengths.append(part.lengths.astype(np.int64))
        return np.concatenate(rows), np.concatenate(documents), np.concatenate(lengths)

    def documents(self) -> Iterator[np.ndarray]:
        """Each document's labels t1 .. tn and end-of-text, whole, in the order of documents."""
        rows, documents, lengths = self.segment_table()
        offsets = np.concatenate([part.offsets for part in self._parts])
        starts = np.cumsum(lengths) - lengths
        starts -= starts[np.searchsorted(rows, rows)]  # counted from the start of the row
        order = np.lexsort((offsets, documents))
        for segments in np.split(order, np.flatnonzero(np.diff(documents[order])) + 1):
            yield np.concatenate([self._labels(int(rows[s]), int(starts[s]), int(lengths[s])) for s in segments])

    def _labels(self, row_id: int, start: int, length: int) -> np.ndarray:
        """The labels of the segment of this row that fills slots start .. start + length."""
        batch = self.batch(np.array([row_id]))
        return batch.labels[0, start : start + length]

    def _locate(self, row_id: int) -> tuple[_Part, int]:
        part = int(np.searchsorted(self._first_rows, row_id, side="right")) - 1
        return self._parts[part], row_id - int(self._first_rows[part])


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; run `dvc repro pack`") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); run `dvc repro pack`") from None
    version = index.get("version") if isinstance(index, dict) else None
    if version != INDEX_VERSION:
        raise BadInput(f"{path}: version {version} of the row format, not {INDEX_VERSION}; run `dvc repro pack`")
    return index


class _Part:
    """Numpy views of one memory-mapped record batch."""

    def __init__(self, batch: pa.RecordBatch, context_length: int):
        def flat(name: str) -> np.ndarray:
            return batch.column(name).flatten().to_numpy(zero_copy_only=True)

        self.input_ids = flat("input_ids").reshape(-1, context_length)
        self.lengths, self.next_ids = flat("lengths"), flat("next_ids")
        self.documents, self.offsets = flat("documents"), flat("offsets")
        self.boundaries = batch.column("lengths").offsets.to_numpy()

    def filled(self) -> np.ndarray:
        """The slots of each row that are not padding, int32."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return (ends[self.boundaries[1:]] - ends[self.boundaries[:-1]]).astype(np.int32)


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1 .. for each start, as many as its count. Example: [5, 9] and [2, 3] give 5 6 9 10 11."""
    ends = np.cumsum(counts)
    return np.arange(int(counts.sum())) + np.repeat(starts - ends + counts, counts)


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
