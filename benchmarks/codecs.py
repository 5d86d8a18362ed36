"""What documents cost between stages: bytes on the disk, CPU seconds to write and to read, by compression.

    python -m benchmarks.make_corpus --bytes 1e9 --out /tmp/corpus/1gb
    python -m benchmarks.codecs /tmp/corpus/1gb/documents/00003.parquet --repeat 7

One shard is written again in row groups of its own size, with a dictionary for the columns that repeat alone (`zstd,
dictionaries` has one for all columns, Arrow's default), and read as dedup reads it: text and split, in batches, by
one thread. The least CPU seconds of `--repeat` runs in turn, for a GB of text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.dedup.sketch import read_batches
from stages.documents import DISTINCT

ROWS = {"zstd, dictionaries": "zstd", "zstd": "zstd", "lz4": "lz4", "snappy": "snappy", "none": "none"}


def seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def read_all(path: Path) -> None:
    for _ in read_batches(path, ["text", "split"]):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=Path)
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    print("python -m benchmarks.codecs", *sys.argv[1:])
    table = pq.read_table(arguments.shard)
    rows = pq.ParquetFile(arguments.shard).metadata.row_group(0).num_rows
    repeating = [name for name in table.column_names if name not in DISTINCT]
    gb = table["text"].nbytes / 1e9
    writing: dict[str, float] = dict.fromkeys(ROWS, float("inf"))
    reading = writing.copy()
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.repeat):
            for row, codec in ROWS.items():
                path = Path(name) / row
                options = {"compression": codec, "use_dictionary": True if "dictionaries" in row else repeating}
                write = partial(pq.write_table, table, path, row_group_size=rows, **options)
                writing[row] = min(writing[row], seconds(write))
                reading[row] = min(reading[row], seconds(partial(read_all, path)))
        print(f"{'':20} {'size / text':>11} {'write, s/GB':>12} {'read, s/GB':>11}")
        for row in ROWS:
            size = (Path(name) / row).stat().st_size / 1e9 / gb
            print(f"{row:20} {size:11.3f} {writing[row] / gb:12.2f} {reading[row] / gb:11.2f}")


if __name__ == "__main__":
    main()
