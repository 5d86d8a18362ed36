"""Counts the distinct pre-tokens of the training text, out of core: shard by shard, then part by part.

    shard 0  ->  part 0: "the" 7, "cat" 2    part 1: "sat" 1         shards side by side, kept by key
    shard 1  ->  part 0: "the" 4             part 1: "mat" 3
    part 0   ->  "the" 11, "cat" 2                                   parts side by side
    part 1   ->  "sat" 1, "mat" 3

A word's part is a hash of its bytes, so no part needs another. A shard is counted in a table of bounded
size, which goes to a file whenever it is full. When one shard of the corpus changes, one shard is counted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from stages.byte_keys import words_of
from stages.entry import Job
from stages.kept import Part
from stages.memory import release_freed
from stages.pretoken_rules import Rule
from stages.tasks import Task, results
from stages.tokenizer import words
from stages.tokenizer.sample import training_texts
from stages.tokenizer.words import Counted, Table
from stages.unicode import tables
from stages.utf8 import Bytes, Offsets, text_buffers

N_PARTS = 16
N_SLOTS = 1 << 19  # 16 MB, for a quarter of a million words
KEY_BYTES = 8 << 20
SCHEMA = pa.schema([("word", pa.large_binary()), ("count", pa.int64())])


def count_words(job: Job, shards: Sequence[Part], rule: Rule) -> Counted:
    """The distinct pre-tokens of the kept training documents, in no particular order."""
    tasks = [Task(job.key("words", shard.digest, shard.kept.hex(), list(rule)), shard) for shard in shards]
    folders = list(results(job, "words", functools.partial(count_shard, rule=rule), tasks))
    keys = [task.key for task in tasks]
    parts = [Task(job.key("sums", keys, number), (number, folders)) for number in range(N_PARTS)]
    columns = [pa.ipc.open_file(folder / "words.arrow").read_all() for folder in results(job, "sums", add_up, parts)]
    table = pa.concat_tables(columns)
    data, offsets = text_buffers(_as_text(table["word"]))
    counted = Counted(data, offsets, table["count"].to_numpy())
    release_freed()
    return counted


def count_shard(shard: Part, folder: Path, rule: Rule) -> None:
    """Writes one file for each time that the table was full, and one for the rest."""
    table = words.new_table(N_SLOTS, KEY_BYTES)
    n_files = 0
    for texts in training_texts(shard, ["text"]):
        data, offsets = text_buffers(texts["text"])
        if len(data) > len(table.keys):  # a text may be one piece
            table = words.with_room(table, 0, len(data))
        for _ in _fill(table, data, offsets, rule):
            write_parts(folder / f"{n_files:03d}.arrow", table)
            words.empty(table)
            n_files += 1
    write_parts(folder / f"{n_files:03d}.arrow", table)


def count_texts(texts: pa.Array, rule: Rule) -> Counted:
    """The distinct pre-tokens of so many texts as fit into memory, in no particular order."""
    table = words.new_table(1 << 12, 1 << 16)
    data, offsets = text_buffers(texts)
    table = words.with_room(table, 1 << 18, len(data))
    parts = []
    for _ in _fill(table, data, offsets, rule):
        parts.append(_counted(table))
        words.empty(table)
    parts.append(_counted(table))
    total = words.new_table(1 << 12, 1 << 16)
    for part in parts:
        total = words.with_room(total, len(part.counts), len(part.data))
        words.add_counted(*part, total)
    return _counted(total)


def _counted(table: Table) -> Counted:
    n_words, n_bytes = table.used
    return Counted(table.keys[:n_bytes].copy(), table.starts[: n_words + 1].copy(), words.counts_of(table))


def _fill(table: Table, data: Bytes, offsets: Offsets, rule: Rule) -> Iterator[None]:
    """Counts texts; stops each time the table is full, and expects it empty when it goes on."""
    at, classes = np.zeros(2, np.int64), tables()[0]
    data = data[:]
    data.flags.writeable = False  # one type of array, so that the kernel is compiled once
    while not words.count_pretokens(data, words_of(data), offsets, classes, *rule, table, at):
        yield


def write_parts(path: Path, table: Table) -> None:
    """The words of the table, a record batch a part."""
    n_words, n_bytes = table.used
    offsets, keys = table.starts[: n_words + 1], table.keys[:n_bytes]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), int(n_words), _buffers(keys, offsets))
    counted = pa.RecordBatch.from_arrays([column, pa.array(words.counts_of(table))], schema=SCHEMA)
    part = words.part_of(table, N_PARTS)
    with pa.ipc.new_file(path, SCHEMA) as file:
        for number in range(N_PARTS):
            file.write_batch(counted.take(pa.array(np.flatnonzero(part == number))))


def add_up(item: tuple[int, list[Path]], folder: Path) -> None:
    """The sum of one part over all files of all shards."""
    number, folders = item
    table = words.new_table(1 << 12, 1 << 16)
    for path in (path for shard in folders for path in sorted(shard.glob("*.arrow"))):
        with pa.OSFile(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(number)
        data, offsets = text_buffers(_as_text(batch.column("word")))
        table = words.with_room(table, batch.num_rows, len(data))
        words.add_counted(data, offsets, batch.column("count").to_numpy(), table)
    n_words, n_bytes = table.used
    buffers = _buffers(table.keys[:n_bytes], table.starts[: n_words + 1])
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), int(n_words), buffers)
    total = pa.Table.from_arrays([column, pa.array(words.counts_of(table))], schema=SCHEMA)
    with pa.ipc.new_file(folder / "words.arrow", SCHEMA) as file:
        file.write_table(total)


def _buffers(data: Bytes, offsets: Offsets) -> list[pa.Buffer | None]:
    return [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]


def _as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Bytes under the name of text, which `text_buffers` takes; pre-tokens are whole characters."""
    return column.cast(pa.large_string())
