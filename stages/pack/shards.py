"""Writes planned rows as Arrow shards with an index. The row format is that of stages/tokens.py.

A shard is one task: the range of its rows. Its worker opens the plan, asks for the segments of that
range, and gathers their tokens (gather.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.entry import Job
from stages.files import file_sha256, write_json
from stages.pack.gather import gather
from stages.pack.plan import Segments, make_plan, open_plan, save_plan
from stages.store import link_file, save_array
from stages.tasks import Task, results
from stages.tokens import INDEX_VERSION, row_schema

SLOTS_PER_BATCH = 1 << 20


class TokenDocuments(NamedTuple):
    """Documents as places in flat token files.

    Attributes:
        files: they stand end to end in this order.
        starts, lengths: the first slot of each document and the number of its slots; a document that is
            repeated stands here several times.
        digest: names all of it.
    """

    files: Sequence[Path]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.integer]
    digest: str


class RowFormat(NamedTuple):
    """What rows look like, beside the documents in them."""

    strategy: str
    context_length: int
    vocab_size: int
    dtype: str
    end_of_text: int
    padding: int


class Layout(NamedTuple):
    """Planned rows of one split, their arrays in files."""

    folder: Path
    format: RowFormat
    digest: str
    n_documents: int
    n_tokens: int
    n_rows: int
    needless_cuts: int


def lay_out(folder: Path, documents: TokenDocuments, format: RowFormat) -> Layout:
    """Plans the rows and leaves the plan in `folder`, which must not be there."""
    plan = make_plan(format.strategy, documents.lengths, format.context_length)
    save_plan(plan, folder)
    save_array(folder / "starts.npy", documents.starts)
    save_array(folder / "document_lengths.npy", documents.lengths)
    (folder / "files.json").write_text(json.dumps([str(path) for path in documents.files]))
    digest = hashlib.sha256(json.dumps([documents.digest, *format]).encode()).hexdigest()
    n_tokens = int(documents.lengths.sum(dtype=np.int64))
    return Layout(folder, format, digest, len(documents.lengths), n_tokens, plan.n_rows, plan.needless_cuts)


def write_rows(job: Job, folder: Path, layout: Layout, shard_tokens: int, **described: Any) -> dict[str, Any]:
    """Writes the shards of one split and its index, which also holds what is `described`."""
    folder.mkdir(parents=True)
    rows_per_shard = max(1, shard_tokens // layout.format.context_length)
    firsts = range(0, layout.n_rows, rows_per_shard)
    spans = [(first, min(first + rows_per_shard, layout.n_rows)) for first in firsts]
    tasks = [Task(job.key("rows", layout.digest, span), span) for span in spans]
    shards, tokens = [], 0
    for number, made in enumerate(results(job, "rows", partial(write_shard, layout=layout), tasks)):
        shard = json.loads((made / "shard.json").read_text())
        tokens += shard.pop("tokens")
        shards.append({"file": f"{number:05d}.arrow", **shard})
        link_file(made / "rows.arrow", folder / f"{number:05d}.arrow")
    index = {
        "version": INDEX_VERSION,
        "context_length": layout.format.context_length,
        "vocab_size": layout.format.vocab_size,
        "dtype": layout.format.dtype,
        "documents": layout.n_documents,
        "tokens": tokens,
        "rows": layout.n_rows,
        "padding": layout.n_rows * layout.format.context_length - tokens,
        "shards": shards,
        **described,
    }
    write_json(folder / "index.json", index)
    return index


def write_shard(span: tuple[int, int], folder: Path, layout: Layout) -> None:
    """Writes the rows of a range as rows.arrow, and shard.json about them."""
    first, last = span
    format = layout.format
    segments = open_plan(layout.folder).segments(first, last)
    inputs, next_ids = filled_rows(segments, first, last, layout)
    schema = row_schema(format.context_length, format.vocab_size)
    boundaries = np.searchsorted(segments.rows, np.arange(first, last + 1))
    step = max(1, SLOTS_PER_BATCH // format.context_length)
    path = folder / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for row in range(0, last - first, step):
            rows = slice(row, min(row + step, last - first))
            writer.write_batch(
                record_batch(segments, inputs[rows], next_ids, boundaries[rows.start : rows.stop + 1], schema)
            )
    described = {
        "rows": last - first,
        "tokens": int(segments.lengths.sum()),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
    write_json(folder / "shard.json", described)


def filled_rows(segments: Segments, first: int, last: int, layout: Layout) -> tuple[npt.NDArray, npt.NDArray]:
    """The slots of the rows, and the label of each segment's last slot."""
    format = layout.format
    starts = np.load(layout.folder / "starts.npy", mmap_mode="r")[segments.documents] + segments.offsets
    lengths = np.load(layout.folder / "document_lengths.npy", mmap_mode="r")[segments.documents]
    files = [Path(path) for path in json.loads((layout.folder / "files.json").read_text())]
    begins = np.cumsum(segments.lengths) - segments.lengths
    row_begins = begins[np.searchsorted(segments.rows, segments.rows)]
    targets = (segments.rows - first) * format.context_length + begins - row_begins
    inputs = np.full((last - first, format.context_length), format.padding, format.dtype)
    next_ids = np.full(len(starts), format.end_of_text, format.dtype)
    gather(files, starts, segments.lengths, targets, inputs.reshape(-1), next_ids)
    next_ids[segments.offsets + segments.lengths == lengths] = format.end_of_text
    return inputs, next_ids


def record_batch(
    segments: Segments, inputs: npt.NDArray, next_ids: npt.NDArray, boundaries: npt.NDArray, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows whose segments are those from boundaries[i] to boundaries[i + 1]."""
    chosen = slice(boundaries[0], boundaries[-1])
    offsets = pa.array(boundaries - boundaries[0], pa.int32())

    def lists(name: str, values: npt.NDArray) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values[chosen], schema.field(name).type.value_type))

    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(inputs.reshape(-1)), inputs.shape[1]),
        lists("lengths", segments.lengths),
        lists("next_ids", next_ids),
        lists("documents", segments.documents),
        lists("offsets", segments.offsets),
    ]
    return pa.record_batch(columns, schema=schema)
