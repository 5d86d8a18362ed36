"""Writes keep.parquet and removals.parquet in the order of ids, without holding all ids.

Rows come shard by shard. They are sorted within a shard and cut at some ids that were chosen from a sample,
so that each part has about a quarter of a million rows; a part of all shards is then sorted by itself and
the parts follow each other. Row groups have a fixed number of rows, so the bytes depend on the rows alone.

    shard 0: a d k   shard 1: b c z   cut at d:   a b c | d k z
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.dedup.decide import RULES, Components, Documents, Removals
from stages.dedup.order import ids_of
from stages.dedup.sketch import Sketches, arrow, read_batches
from stages.utf8 import text_array

KEEP = pa.schema([("id", pa.string()), ("cluster", pa.string())])
REMOVALS = pa.schema([("id", pa.string()), ("kept_id", pa.string()), ("rule", pa.string()), ("jaccard", pa.float64())])
PART_ROWS = 1 << 18
GROUP_ROWS = 1 << 17
SAMPLE = 64


class SortedWriter:
    """A Parquet file of rows that are sorted by their column `id`, from tables in any order."""

    def __init__(self, path: Path, schema: pa.Schema, cuts: list[str]):
        self.path, self.schema, self.cuts = path, schema, cuts
        self.folder = path.with_name(f"{path.name}.parts")
        self.folder.mkdir()
        self.parts = [pa.ipc.new_file(self.folder / str(number), schema) for number in range(len(cuts) + 1)]

    def add(self, table: pa.Table) -> None:
        table = table.sort_by("id")
        begin = 0
        for number, part in enumerate(self.parts):
            last = number == len(self.cuts)
            end = len(table) if last else pc.sum(pc.less(table["id"], self.cuts[number]), min_count=0).as_py()
            part.write_table(table.slice(begin, end - begin))
            begin = end

    def close(self) -> None:
        for part in self.parts:
            part.close()
        waiting: pa.Table | None = None
        # Ids do not repeat. Nor do cluster and kept_id much: most documents are their own cluster, most that go do so
        # for one of their own. On lists made up of 256,042 ids, 5% removed, dictionaries of these two took twice the
        # bytes and time for keep.parquet, 12% more bytes for removals.parquet (1% less if for one of 50 documents).
        with pq.ParquetWriter(self.path, self.schema, compression="zstd", use_dictionary=["rule"]) as file:
            for number in range(len(self.parts)):
                with pa.OSFile(str(self.folder / str(number))) as source:
                    part = pa.ipc.open_file(source).read_all().sort_by("id")
                waiting = part if waiting is None else pa.concat_tables([waiting, part])
                while len(waiting) > GROUP_ROWS:
                    file.write_table(waiting.slice(0, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
                    waiting = waiting.slice(GROUP_ROWS)
            assert waiting is not None, "there is at least one part"
            file.write_table(waiting.combine_chunks(), row_group_size=GROUP_ROWS)
        shutil.rmtree(self.folder)


def write_lists(
    folder: Path,
    sketches: Sketches,
    order: Path,
    removals: Removals,
    clusters: Components,
    clustered: Documents,
    metadata: dict[str, str],
) -> None:
    """keep.parquet, whose cluster is the id of the cluster's preferred document, and removals.parquet.

    Args:
        order: the folder of the documents' order.
        clustered: the documents that are in a cluster of two or more, ascending.
    """
    numbers = np.load(order / "numbers.npy", mmap_mode="r")
    positions = np.load(order / "positions.npy", mmap_mode="r")
    named = np.unique(np.concatenate((clusters.names(clustered), removals.kept)))
    names = ids_of(sketches, positions[named].astype(np.int64))
    cuts = sample_cuts(sketches)
    keep = SortedWriter(folder / "keep.parquet", KEEP.with_metadata(metadata), cuts)
    removed = SortedWriter(folder / "removals.parquet", REMOVALS.with_metadata(metadata), cuts)
    for shard, ids in enumerate(shard_ids(sketches)):
        documents = numbers[sketches.starts[shard] : sketches.starts[shard + 1]].astype(np.int64)
        gone, places = removals.find(documents)
        clusters_here = ids_by_name(ids, documents, clusters.names(documents), named, names)
        keep.add(pa.table([ids, clusters_here], schema=keep.schema).filter(arrow(~gone)))
        chosen = places[gone]
        columns = [
            ids.filter(arrow(gone)),
            names.take(arrow(np.searchsorted(named, removals.kept[chosen]))).cast(pa.string()),
            rule_names().take(arrow(removals.rules[chosen])),
            arrow(removals.jaccards[chosen]),
        ]
        removed.add(pa.table(columns, schema=removed.schema))
    keep.close()
    removed.close()


def rule_names() -> pa.Array:
    ends = np.cumsum([0, *map(len, RULES)])
    return text_array(np.frombuffer("".join(RULES).encode(), np.uint8), ends).cast(pa.string())


def ids_by_name(ids: pa.Array, documents: Documents, wanted: Documents, named: Documents, names: pa.Array) -> pa.Array:
    """The id of `wanted[i]` for each document i of a shard: mostly its own, else one of `names`."""
    own = documents == wanted
    others = names.take(arrow(np.searchsorted(named, wanted[~own]))).cast(pa.string())
    return pc.replace_with_mask(ids, arrow(~own), others)


def shard_ids(sketches: Sketches) -> Iterator[pa.Array]:
    for path in sketches.shards:
        batches = [batch.column("id").cast(pa.string()) for batch in read_batches(path, ["id"])]
        yield pa.concat_arrays([*batches, pa.nulls(0, pa.string())])


def sample_cuts(sketches: Sketches) -> list[str]:
    """Ids that cut all ids into parts of about `PART_ROWS`."""
    n_parts = -(-len(sketches) // PART_ROWS)
    if n_parts < 2:
        return []
    sample = pa.concat_arrays([ids.take(arrow(np.arange(0, len(ids), SAMPLE))) for ids in shard_ids(sketches)])
    ascending = sample.take(pc.array_sort_indices(sample)).to_pylist()
    return [ascending[len(ascending) * number // n_parts] for number in range(1, n_parts)]


def metadata_of(values: dict[str, object]) -> dict[str, str]:
    return {f"millrace.{name}": str(value) for name, value in sorted(values.items())}
