"""Writes what became of each kept document, for `millrace data explain`, `stats` and `inspect`.

    documents/SPLIT.parquet          id, source, tokens, bytes, copies: in the order in which rows number documents
    documents/contaminated.parquet   training documents that share text with evaluation files (decontaminate.py)
    documents/leaks.parquet          training documents that nearly repeat a reserved one (leaks.py)

A document taken three times has three numbers, one after the other; one with copies = 0 has none. So
the number of a document in the rows is the sum of the copies before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.pack.decontaminate import CONTAMINATED
from stages.pack.encode import DOCUMENTS, EncodedParts
from stages.pack.leaks import FOUND, Leak
from stages.pack.mixture import Copies
from stages.splits import Split

TAKEN = DOCUMENTS.append(pa.field("copies", pa.uint16()))
COUNTS = ("documents", "bytes", "tokens", "repeated_tokens", "left_out_tokens")


class Record:
    """The folder documents/ of the stage's output.

    Attributes:
        contaminated: the ids of training documents that must not be taken.
    """

    def __init__(self, folder: Path, contaminated: Sequence[pa.Table], leaks: Sequence[Leak]):
        self.folder = folder
        folder.mkdir(parents=True)
        table = pa.concat_tables([CONTAMINATED.empty_table(), *contaminated])
        self.contaminated = frozenset(table["id"].to_pylist())
        pq.write_table(table, folder / "contaminated.parquet")
        rows = [{"id": leak.training_id, "reserved_id": leak.reserved_id, "jaccard": leak.jaccard} for leak in leaks]
        pq.write_table(pa.Table.from_pylist(rows, FOUND), folder / "leaks.parquet")

    def write(self, split: Split, encoded: EncodedParts, copies: Sequence[Copies] | None) -> dict[str, dict[str, int]]:
        """Writes SPLIT.parquet.

        Args:
            copies: how often each document of each part is taken; None: all once.

        Returns:
            per source: documents, bytes and tokens taken, with their copies; how many of the tokens are in second
            and further copies, and how many tokens were left out.
        """
        sources: dict[str, dict[str, int]] = {}
        with pq.ParquetWriter(self.folder / f"{split}.parquet", TAKEN, compression="zstd") as writer:
            for number, table in enumerate(encoded.documents(split, DOCUMENTS.names)):
                times = np.ones(len(table), np.uint16) if copies is None else copies[number]
                table = table.append_column(TAKEN.field("copies"), pa.array(times))
                writer.write_table(table)
                _count(sources, table, times.astype(np.int64))
        return dict(sorted(sources.items()))


def _count(sources: dict[str, dict[str, int]], table: pa.Table, times: np.ndarray) -> None:
    tokens = table["tokens"].to_numpy()
    values = (
        times,
        table["bytes"].to_numpy() * times,
        tokens * times,
        tokens * np.maximum(times - 1, 0),
        tokens * (times == 0),
    )
    counted = {name: pa.array(column) for name, column in zip(COUNTS, values, strict=True)}
    grouped = pa.table({"source": table["source"], **counted}).group_by("source")
    for row in grouped.aggregate([(name, "sum") for name in COUNTS]).to_pylist():
        own = sources.setdefault(row["source"], dict.fromkeys(COUNTS, 0))
        for name in COUNTS:
            own[name] += row[f"{name}_sum"]
