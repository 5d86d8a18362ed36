"""The kept training documents, and every n-th of them: a sample of about 16 MB, on which tokenizers are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.kept import Part

SAMPLE_BYTES = 16_000_000


class Sample(NamedTuple):
    """Texts and the source of each."""

    texts: list[str]
    sources: list[str]


def training_texts(shard: Part, columns: list[str]) -> Iterator[pa.Table]:
    """The kept training documents, about a thousand rows at a time."""
    for batch in shard.batches([*columns, "split"]):
        yield pa.Table.from_batches([batch.filter(pc.equal(batch.column("split"), "train"))]).select(columns)


def read_sample(shards: Sequence[Part], sample_bytes: int = SAMPLE_BYTES) -> Sample:
    """Every n-th document of each shard, the first included. n follows from the size of the text columns."""
    nth = max(1, sum(map(_text_bytes, shards)) // sample_bytes)
    texts: list[str] = []
    sources: list[str] = []
    seen = 0
    for shard in shards:
        for table in training_texts(shard, ["text", "source"]):
            rows = np.flatnonzero((seen + np.arange(table.num_rows)) % nth == 0)
            seen += table.num_rows
            chosen = table.take(pa.array(rows))
            texts += chosen["text"].to_pylist()
            sources += chosen["source"].to_pylist()
    return Sample(texts, sources)


def _text_bytes(shard: Part) -> int:
    """The size of the column `text` before compression."""
    with pq.ParquetFile(shard.path) as file:
        place = file.schema_arrow.get_field_index("text")
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        return sum(group.column(place).total_uncompressed_size for group in groups)
