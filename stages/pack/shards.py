"""Writes planned rows as Arrow shards with an index. The row format is that of stages/tokens.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.entry import file_sha256, write_json
from stages.pack.encode import EncodedSplit
from stages.pack.plan import Plan
from stages.progress import progress
from stages.tokens import INDEX_VERSION, row_schema

SLOTS_PER_BATCH = 1 << 20


def write_rows(
    folder: Path,
    encoded: EncodedSplit,
    plan: Plan,
    *,
    context_length: int,
    vocab_size: int,
    shard_tokens: int,
    end_of_text: int,
    padding: int,
    tokenizer_sha256: str,
) -> dict[str, Any]:
    """Writes one split and returns its index."""
    folder.mkdir(parents=True)
    schema = row_schema(context_length, vocab_size)
    rows_per_shard = max(1, shard_tokens // context_length)
    rows_per_batch = max(1, SLOTS_PER_BATCH // context_length)
    boundaries = np.searchsorted(plan.rows, np.arange(plan.n_rows + 1))
    source = _Source(encoded, plan, end_of_text, padding)
    shards = []
    with progress(f"pack: {folder.name}", plan.n_rows, "rows") as bar:
        for number, first in enumerate(range(0, plan.n_rows, rows_per_shard)):
            last = min(first + rows_per_shard, plan.n_rows)
            path = folder / f"{number:05d}.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for start in range(first, last, rows_per_batch):
                    stop = min(start + rows_per_batch, last)
                    writer.write_batch(source.batch(start, stop, boundaries, schema, context_length))
                    bar.update(stop - start)
            shards.append(
                {"file": path.name, "rows": last - first, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            )
    slots = plan.n_rows * context_length
    index = {
        "version": INDEX_VERSION,
        "context_length": context_length,
        "vocab_size": vocab_size,
        "dtype": str(encoded.dtype),
        "tokenizer_sha256": tokenizer_sha256,
        "documents": len(encoded.lengths),
        "tokens": int(plan.lengths.sum()),
        "rows": plan.n_rows,
        "padding": slots - int(plan.lengths.sum()),
        "shards": shards,
    }
    write_json(folder / "index.json", index)
    return index


class _Source:
    """Gathers the tokens of planned rows from the flat file."""

    def __init__(self, encoded: EncodedSplit, plan: Plan, end_of_text: int, padding: int):
        self.tokens, self.plan, self.padding = encoded.tokens(), plan, padding
        document_ends = np.cumsum(encoded.lengths)
        starts = (document_ends - encoded.lengths)[plan.documents] + plan.offsets
        self.starts, stops = starts, starts + plan.lengths
        self.next_ids = np.full(len(starts), end_of_text, encoded.dtype)
        cut = stops < document_ends[plan.documents]
        self.next_ids[cut] = self.tokens[stops[cut]]

    def batch(
        self, first: int, last: int, boundaries: np.ndarray, schema: pa.Schema, context_length: int
    ) -> pa.RecordBatch:
        s, e = boundaries[first], boundaries[last]
        lengths = self.plan.lengths[s:e]
        inputs = np.full((last - first) * context_length, self.padding, self.tokens.dtype)
        begins = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(begins, lengths)
        row_starts = begins[boundaries[first:last] - s]
        slots_before = np.repeat(row_starts, np.diff(boundaries[first : last + 1]))
        targets = (self.plan.rows[s:e] - first) * context_length + begins - slots_before
        inputs[np.repeat(targets, lengths) + within] = self.tokens[np.repeat(self.starts[s:e], lengths) + within]
        offsets = pa.array(boundaries[first : last + 1] - s, pa.int32())

        def lists(name: str, values: np.ndarray) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, pa.array(values, schema.field(name).type.value_type))

        rows = pa.FixedSizeListArray.from_arrays(pa.array(inputs), context_length)
        return pa.record_batch(
            [
                rows,
                lists("lengths", lengths),
                lists("next_ids", self.next_ids[s:e]),
                lists("documents", self.plan.documents[s:e]),
                lists("offsets", self.plan.offsets[s:e]),
            ],
            schema=schema,
        )
