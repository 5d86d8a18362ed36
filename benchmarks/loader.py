"""How fast packed rows become batches on one core: `python -m benchmarks.training --loader`.

Rows as the stage `pack` writes them, full of documents of 512 tokens on average, 0.1% of all slots padding, read in
the order of training. CPU seconds of the thread that reads count, so that other work on the machine does not. The
least of several passes is taken: what disturbs a pass makes it slower only.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.order import data_order
from stages.tokens import INDEX_VERSION, TokenRows, row_schema
from stages.train.batches import Batches

BAR = 200e6
VOCABULARY = 50304


def write_rows(folder: Path, n_rows: int, length: int) -> TokenRows:
    """One shard of random tokens."""
    random = np.random.default_rng(0)
    begins = random.random((n_rows, length)) < 1 / 512
    begins[:, 0] = True
    padding = random.random(n_rows) < length / 4096  # in such rows some last slots
    rows = []
    for number in range(n_rows):
        starts = np.flatnonzero(begins[number])
        end = length - (int(random.integers(1, 9)) if padding[number] else 0)
        starts = starts[starts < end]
        lengths = np.diff(np.append(starts, end)).astype(np.int32)
        tokens = random.integers(0, VOCABULARY, length).astype(np.uint16)
        zeros = np.zeros(len(starts), np.int64)
        rows.append({"input_ids": tokens, "lengths": lengths, "next_ids": zeros, "documents": zeros, "offsets": zeros})
    schema = row_schema(length, VOCABULARY)
    path = folder / "00000.arrow"
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema).combine_chunks())
    shard = {"file": path.name, "rows": n_rows, "bytes": path.stat().st_size}
    index = {"version": INDEX_VERSION, "context_length": length, "vocab_size": VOCABULARY, "shards": [shard]}
    (folder / "index.json").write_text(json.dumps(index))
    return TokenRows(folder)


def tokens_per_cpu_second(rows: TokenRows, rows_per_step: int, micro_batch: int, steps: int, passes: int) -> float:
    batches = Batches(rows, 0, rows_per_step, 0, 1, micro_batch, 0)
    batches.next()
    seconds = []
    for first in range(0, passes * steps, steps):
        started = time.thread_time()
        for step in range(first, first + steps):
            batches.at(step)
        seconds.append(time.thread_time() - started)
    batches.close()
    return steps * rows_per_step * rows.context_length / min(seconds)


def measure_loader(toy: bool) -> list[dict]:
    """A line for each length of a row."""
    found = []
    for length, micro_batch in ((256, 4), (256, 128), (1024, 32), (2048, 16), (8192, 4)):
        tokens = 1 << (17 if toy else 23)
        with tempfile.TemporaryDirectory() as folder:
            rows = write_rows(Path(folder), tokens // length, length)
            rows_per_step = min(131072, tokens) // length
            rate = tokens_per_cpu_second(rows, rows_per_step, micro_batch, 4 if toy else 40, 3 if toy else 9)
            order = order_per_cpu_second(rows.n_rows, rows_per_step) * length
        print(
            f"loader: rows of {length:5} by {micro_batch:3}: {rate / 1e6:7.1f}M tokens/s a core, {rate / BAR:5.2f} of "
            f"the bar; their order alone {order / 1e6:.0f}M",
            flush=True,
        )
        found.append({"length": length, "micro_batch": micro_batch, "tokens_per_cpu_second": rate})
    return found


def order_per_cpu_second(n_rows: int, rows_per_step: int) -> float:
    started = time.thread_time()
    for step in range(50):
        data_order(n_rows, 0, step * rows_per_step, rows_per_step)
    return 50 * rows_per_step / (time.thread_time() - started)
