"""Counts training documents that nearly repeat a reserved one, by an exact method without signatures.

dedup finds leaks by MinHash; this check shares nothing with it but the definition of a shingle, so it
also holds where `dedup.verify` is off or its params are loose. All shingles of the reserved documents
(validation and test) go into one sorted index that says in which of them each occurs. Then one pass
over the training documents looks up their shingles and counts those common with each reserved document.

The Jaccard similarity |A and B| / |A or B| is at most |A and B| / |A|, so B matters only if it has
three quarters of the shingles of some reserved A. Example: A has 100 shingles, B has 80 of them and
10 others: 80 / (100 + 90 - 80) = 0.73, no leak.

Memory is bounded: about 28 bytes for each of at most 4 million shingles. Where the reserved text has more (25 MB
and above), its documents are taken in groups, with a pass over the training text for each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.compiled import kernel
from stages.kept import kept_parts
from stages.progress import progress
from stages.shingles import Hashes, Shingled, distinct, shingle_texts
from stages.store import save_array
from stages.utf8 import Offsets, text_buffers
from stages.workers import batches, ordered_map

NGRAM = 5
THRESHOLD = 0.75
BATCH_BYTES = 1 << 21
GROUP_SHINGLES = 1 << 22
SIEVE_BITS = 32  # for each key
ONE = np.uint64(1)


class Leak(NamedTuple):
    """A training document and the reserved document that is most like it."""

    training_id: str
    reserved_id: str
    jaccard: float


class Sets(NamedTuple):
    """Ids of some documents, and their distinct shingles end to end."""

    ids: list[str]
    shingles: Hashes
    ends: Offsets


@dataclasses.dataclass(frozen=True)
class ReservedIndex:
    """Which reserved documents hold which shingles.

    Attributes:
        keys: the distinct shingles of all reserved documents, sorted, uint64[k]; none is 0 (stages/shingles.py).
        starts: the documents of keys[i] are documents[starts[i] : starts[i + 1]], int32[k + 1].
        sizes: the number of shingles of each document, int64.
        sieve: a bit for some low bits of a key, set if a key has these: most shingles of training text end there.
    """

    keys: Hashes
    starts: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    sieve: Hashes

    @classmethod
    def of(cls, shingles: Hashes, ends: Offsets) -> ReservedIndex:
        """Of the sets of documents, end to end."""
        sizes = np.diff(ends)
        order = np.argsort(shingles, kind="stable")
        documents = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
        shingles = shingles[order]
        del order  # it is as large as the shingles, and np.unique would make two more like it
        begins = np.ones(len(shingles), np.bool_)
        begins[1:] = shingles[1:] != shingles[:-1]
        starts = np.flatnonzero(begins).astype(np.int32)
        keys = shingles[starts]
        words = 1
        while words * 64 < SIEVE_BITS * len(keys):
            words *= 2
        sieve = np.zeros(words, np.uint64)
        _fill_sieve(keys, sieve)
        return cls(keys, np.append(starts, np.int32(len(shingles))), documents, sizes, sieve)

    def save(self, folder: Path) -> None:
        """One file an array, for workers to map into memory."""
        folder.mkdir(parents=True)
        for field in dataclasses.fields(self):
            save_array(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> ReservedIndex:
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in dataclasses.fields(cls)))

    def common(self, shingled: Shingled, seen: npt.NDArray[np.int32], first: int) -> npt.NDArray[np.int64]:
        """(text, reserved document, common shingles) where these are three quarters of the reserved document's.

        Args:
            seen: int32[k], 0 at first: in which text each key was seen last.
            first: the number of the first of these texts; one number a text, from 1.
        """
        limits = np.ceil(THRESHOLD * self.sizes).astype(np.int64)
        return _count(
            shingled.shingles, shingled.ends, self.keys, self.starts, self.documents, self.sieve, limits, seen, first
        )


def find_leaks(root: Path, folder: Path, n_workers: int) -> list[Leak]:
    """The kept training documents that nearly repeat a reserved one; `folder` takes the index."""
    leaks: dict[str, Leak] = {}
    sets = ordered_map(shingle_sets, text_batches(root, reserved=True), n_workers)
    for number, group in enumerate(batches(sets, lambda item: len(item.shingles), GROUP_SHINGLES)):
        ids = [name for item in group for name in item.ids]
        ends = np.concatenate([[0], *(np.diff(item.ends) for item in group)]).cumsum()
        place = folder / str(number)
        ReservedIndex.of(np.concatenate([item.shingles for item in group]), ends).save(place)
        del group
        for leak in leaks_of_group(root, place, ids, n_workers):
            if leak.training_id not in leaks or leaks[leak.training_id].jaccard < leak.jaccard:
                leaks[leak.training_id] = leak
    return list(leaks.values())


def leaks_of_group(root: Path, folder: Path, ids: list[str], n_workers: int) -> Iterator[Leak]:
    """One pass over the training text, for the reserved documents of one index."""
    with progress("pack: compared with reserved text", None, "documents") as bar:
        nearest = functools.partial(nearest_reserved, folder=folder)
        for size, found in ordered_map(nearest, text_batches(root, reserved=False), n_workers):
            yield from (Leak(name, ids[reserved], jaccard) for name, reserved, jaccard in found)
            bar.update(size)


def text_batches(root: Path, reserved: bool) -> Iterator[pa.Table]:
    """The kept reserved documents, or the kept training documents, in tables (id, text) of about two megabytes."""
    for part in kept_parts(root / "data/clean/documents", root / "data/dedup/keep.parquet"):
        for batch in part.batches(["id", "text", "split"]):
            wanted = batch.filter(pc.equal(pc.equal(batch["split"], "train"), not reserved)).select(["id", "text"])
            yield from _pieces(pa.Table.from_batches([wanted]))


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    if len(table) > 1 and table.nbytes > BATCH_BYTES:
        yield from _pieces(table.slice(0, len(table) // 2))
        yield from _pieces(table.slice(len(table) // 2))
    elif len(table):
        yield table


def _shingled(table: pa.Table) -> Shingled:
    return shingle_texts(*text_buffers(table["text"]), NGRAM)


def shingle_sets(table: pa.Table) -> Sets:
    shingled = _shingled(table)
    return Sets(table["id"].to_pylist(), *distinct(shingled.shingles, shingled.ends))


def nearest_reserved(table: pa.Table, folder: Path) -> tuple[int, list[tuple[str, int, float]]]:
    """The number of documents, and (id, reserved document, Jaccard similarity) of those near a reserved one."""
    index, seen, count = opened(folder)
    shingled = _shingled(table)
    best: dict[int, tuple[float, int]] = {}
    for text, reserved, common in index.common(shingled, seen, count[0] + 1).tolist():
        begin, end = shingled.ends[text : text + 2]
        own = len(distinct(shingled.shingles[begin:end], np.array([0, end - begin]))[0])
        jaccard = common / (int(index.sizes[reserved]) + own - common)
        if jaccard >= THRESHOLD and (text not in best or best[text] < (jaccard, -reserved)):
            best[text] = (jaccard, -reserved)
    count[0] += len(table)
    return len(table), [(table["id"][text].as_py(), -at, jaccard) for text, (jaccard, at) in sorted(best.items())]


@functools.lru_cache(maxsize=1)
def opened(folder: Path) -> tuple[ReservedIndex, npt.NDArray[np.int32], list[int]]:
    """The index, in which text of this process each of its keys was seen last, and the number of texts."""
    index = ReservedIndex.open(folder)
    return index, np.zeros(len(index.keys), np.int32), [0]


@kernel
def _fill_sieve(keys, sieve):  # type: ignore[no-untyped-def]
    for key in keys:
        sieve[(key >> np.uint64(6)) & np.uint64(len(sieve) - 1)] |= ONE << (key & np.uint64(63))


@kernel
def _count(shingles, ends, keys, starts, documents, sieve, limits, seen, first):  # type: ignore[no-untyped-def]
    counts, touched = np.zeros(len(limits), np.int64), np.empty(len(limits), np.int64)
    mask = np.uint64(len(sieve) - 1)
    rows, n_rows = np.empty((64, 3), np.int64), 0
    for text in range(len(ends) - 1):
        n_touched = 0
        for at in range(ends[text], ends[text + 1]):
            value = max(shingles[at], ONE)
            if (sieve[(value >> np.uint64(6)) & mask] >> (value & np.uint64(63))) & ONE == 0:
                continue
            key = np.searchsorted(keys, value)
            if key == len(keys) or keys[key] != value or seen[key] == first + text:
                continue
            seen[key] = first + text
            for posting in range(starts[key], starts[key + 1]):
                document = documents[posting]
                if counts[document] == 0:
                    touched[n_touched] = document
                    n_touched += 1
                counts[document] += 1
        for at in range(n_touched):
            document = touched[at]
            if counts[document] >= limits[document]:
                if n_rows == len(rows):
                    rows = np.concatenate((rows, np.empty_like(rows)))
                rows[n_rows, 0], rows[n_rows, 1], rows[n_rows, 2] = text, document, counts[document]
                n_rows += 1
            counts[document] = 0
    return rows[:n_rows]
