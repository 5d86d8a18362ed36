"""Which document a number in the packed rows means: the rows say numbers, data/pack/documents says ids.

documents/train.parquet   id  a  b  c      a document taken three times has three numbers,
                          copies 1  3  0    one taken never has none: 0 = a, 1 to 3 = b
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def document_names(root: Path, split: str, numbers: Iterable[int]) -> dict[int, str]:
    """The ids of documents by their number in the rows of a split."""
    import pyarrow.parquet as pq

    found: dict[int, str] = {}
    first, wanted = 0, np.unique(np.fromiter(numbers, np.int64))
    with pq.ParquetFile(root / "data/pack/documents" / f"{split}.parquet") as file:
        for batch in file.iter_batches(columns=["id", "copies"]):
            ends = first + np.cumsum(batch["copies"].to_numpy().astype(np.int64))
            last = int(ends[-1]) if len(ends) else first
            for number in wanted[(wanted >= first) & (wanted < last)].tolist():
                found[number] = batch["id"][int(np.searchsorted(ends, number, side="right"))].as_py()
            first = last
            if len(found) == len(wanted):
                break
    return found
