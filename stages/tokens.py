"""Packed rows of tokens as Arrow shards, memory-mapped.

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
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import BadInput
from stages.row_kernel import IGNORED_LABEL as IGNORED_LABEL
from stages.row_kernel import write_rows
from stages.wording import counted

INDEX_VERSION = 1


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
            raise BadInput(f"{path}: not the shard of {counted(shard['rows'], 'row')} that index.json names; {mend}")
        parts = [_Part(batch, self.context_length) for batch in batches]
        if not all(part.fits() for part in parts):
            raise BadInput(f"{path}: its segments do not fill rows of {self.context_length}; {mend}")
        return parts

    def batch(
        self, row_ids: np.ndarray, dtype: type[np.signedinteger] = np.int64, empty: Callable[..., np.ndarray] = np.empty
    ) -> Batch:
        """The rows with these numbers, in this order.

        Args:
            dtype: who copies them on may want a narrower one.
            empty: makes the arrays, from a shape and a dtype, where they must lie in memory of another kind.
        """
        shape = (len(row_ids), self.context_length)
        arrays = [empty(shape, dtype) for _ in dataclasses.fields(Batch)]
        parts = np.searchsorted(self._first_rows, row_ids, side="right") - 1
        rows = row_ids - self._first_rows[parts]
        for number in np.unique(parts):
            part, here = self._parts[number], np.flatnonzero(parts == number)
            write_rows(rows[here], here, part.input_ids, part.boundaries, part.lengths, part.next_ids, *arrays)
        return Batch(*arrays)

    def n_labels(self, row_ids: np.ndarray) -> int:
        """The labels of these rows: their slots that are not padding."""
        return int(self._filled[row_ids].sum(dtype=np.int64))

    def n_documents(self, row_ids: np.ndarray) -> np.ndarray:
        """The segments of each of these rows; the padding of a row counts as one (model/context.py)."""
        return self._segments[row_ids] + (self._filled[row_ids] < self.context_length)

    @cached_property
    def _filled(self) -> np.ndarray:
        """The slots of each row that are not padding, int32."""
        return np.concatenate([np.zeros(0, np.int32), *(part.filled() for part in self._parts)])

    @cached_property
    def _segments(self) -> np.ndarray:
        """The segments of each row, int32."""
        return np.concatenate([np.zeros(0, np.int32), *(np.diff(part.boundaries) for part in self._parts)])

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

    def fits(self) -> bool:
        """Whether the segments lie within their rows: the kernel that writes them does not look (row_kernel.py)."""
        counts, n = np.diff(self.boundaries), len(self.lengths)
        if len(self.next_ids) != n or self.boundaries[0] != 0 or self.boundaries[-1] != n or (counts < 0).any():
            return False
        return n == 0 or (self.lengths.min() > 0 and self.filled(np.int64).max() <= self.input_ids.shape[1])

    def filled(self, dtype: type[np.signedinteger] = np.int32) -> np.ndarray:
        """The slots of each row that are not padding."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return (ends[self.boundaries[1:]] - ends[self.boundaries[:-1]]).astype(dtype)
