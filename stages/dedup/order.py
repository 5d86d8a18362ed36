"""Numbers the documents by preference, so that nothing later depends on the order of documents or of shards.

Number 0 is the document that would be kept before all others: reserved ones first (validation, test), then
the longest in bytes, ties by the hash of the normalised text, then by id. A document's number is found by
its position and the other way round, 4 bytes each.

Sorting takes one 64-bit key a document: a bit for training, 31 bits that fall with the size, 32 bits of the
hash. Equal keys, mostly true copies, are then put in order by whole hash and id.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.dedup.sketch import Numbers, Positions, Sketches, arrow, read_batches
from stages.store import save_array

LARGEST_SIZE = (1 << 31) - 1
NONE = np.uint32(0xFFFFFFFF)
"""In place of a number: this document is compared with none."""


def write_order(sketches: Sketches, folder: Path) -> None:
    """positions.npy, uint32 by number, and numbers.npy, uint32 by position; the function of a task."""
    keys = np.concatenate([*map(preference_keys, *(sketches.arrays(n) for n in ("reserved", "sizes", "exact")))])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = np.concatenate(([False], keys[1:] == keys[:-1], [False]))
    tied = same[1:] | same[:-1]
    if tied.any():
        order[tied] = _in_order(sketches, keys[tied], order[tied])
    numbers = np.empty(len(order), np.uint32)
    numbers[order] = np.arange(len(order), dtype=np.uint32)
    save_array(folder / "positions.npy", order.astype(np.uint32))
    save_array(folder / "numbers.npy", numbers)


def preference_keys(
    reserved: npt.NDArray[np.bool_], sizes: npt.NDArray[np.uint32], exact: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Smaller is preferred."""
    shortness = LARGEST_SIZE - np.minimum(sizes.astype(np.int64), LARGEST_SIZE)
    high = (~reserved).astype(np.uint64) << np.uint64(31) | shortness.astype(np.uint64)
    return high << np.uint64(32) | exact[:, 0] >> np.uint64(32)


def _in_order(sketches: Sketches, keys: npt.NDArray[np.uint64], positions: Positions) -> Positions:
    """Positions of equal keys in the order of key, size beyond 31 bits, hash and id."""
    exact, sizes = np.empty((len(keys), 2), np.uint64), np.empty(len(keys), np.uint32)
    for shard, rows, places in sketches.by_shard(positions):
        exact[places] = np.load(sketches.folders[shard] / "exact.npy", mmap_mode="r")[rows]
        sizes[places] = np.load(sketches.folders[shard] / "sizes.npy", mmap_mode="r")[rows]
    shortness = np.iinfo(np.uint32).max - sizes
    columns: dict[str, np.ndarray] = {"key": keys, "size": shortness, "high": exact[:, 0], "low": exact[:, 1]}
    arrays = [*map(arrow, columns.values()), ids_of(sketches, positions)]
    table = pa.Table.from_arrays(arrays, [*columns, "id"])
    order = pc.sort_indices(table, [(name, "ascending") for name in table.column_names])
    return positions[np.frombuffer(order.buffers()[1], np.uint64, len(order)).astype(np.int64)]


def ids_of(sketches: Sketches, positions: Positions) -> pa.Array:
    """The ids of documents, in the order of the positions."""
    found, places_found = [pa.nulls(0, pa.large_string())], [np.empty(0, np.int64)]
    for shard, rows, places in sketches.by_shard(positions):
        ascending = np.argsort(rows, kind="stable")
        for batch in read_batches(sketches.shards[shard], ["id"], rows[ascending]):
            found.append(batch.column("id").cast(pa.large_string()))
        places_found.append(places[ascending])
    back = np.argsort(np.concatenate(places_found), kind="stable")
    return pa.concat_arrays(found).take(arrow(back))


def load_positions(folder: Path) -> Numbers:
    """The position of each number, mapped from its file."""
    return np.load(folder / "positions.npy", mmap_mode="r")
