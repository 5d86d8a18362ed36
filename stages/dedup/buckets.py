"""Reduces: documents with equal keys, for one part of some bands over all shards.

The keys of a band fall into parts by their first bits, so that a part has up to `PART_ENTRIES` documents,
whatever the corpus: 28 bands of 4 million documents are 28 x 4 tasks, each of which holds 20 bytes a document.
Larger parts are quicker, since each is read from every shard. Of a small corpus a task takes several bands, one
after the other: 28 bands of 60,000 documents are 7 tasks.

A bucket is the documents that share a key. One of up to 64 gives all its pairs. A larger one is handed on
whole, to be compared in stars (stars.py). A pair is one number, first << 32 | second, where the first is
preferred to the second, so that sorted pairs lie together by their first document. Pairs of two reserved
documents are left out; with `enabled: false` also those of two training documents.

Without verification (`verify: false`) every document of a bucket is paired with the bucket's first reserved and
its first training document alone: that connects the same components.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.compiled import kernel
from stages.dedup.order import NONE
from stages.dedup.sketch import PREFIX_BITS, Numbers, Sketches
from stages.store import save_array

ALL_PAIRS_UP_TO = 64
PART_ENTRIES = 1 << 20
TASK_ENTRIES = 1 << 18
MOST_PARTS = 1 << PREFIX_BITS
SLOTS_OF_KEY = 8
Pairs = npt.NDArray[np.uint64]


class BucketItem(NamedTuple):
    """One part of some bands.

    Attributes:
        numbers: the file with the number of each position; `NONE` where a document is not compared.
        n_reserved: the first so many numbers are reserved documents.
    """

    sketches: Sketches
    bands: range
    part: int
    n_parts: int
    numbers: Path
    n_reserved: int
    enabled: bool
    verify: bool


def n_parts_of(n_documents: int) -> int:
    """A power of two."""
    parts = 1
    while parts < MOST_PARTS and n_documents > parts * PART_ENTRIES:
        parts *= 2
    return parts


def bands_together(n_documents: int, bands: range) -> list[range]:
    """The bands in groups of up to `TASK_ENTRIES` documents."""
    size = max(TASK_ENTRIES // max(n_documents, 1), 1)
    return [bands[at : at + size] for at in range(0, len(bands), size)]


def write_copies(item: BucketItem, folder: Path) -> None:
    """copies.npy, uint32[n, 2]: every document but the first of those with one exact hash, and that first one."""
    (band,) = item.bands
    keys, positions = item.sketches.entries(band, item.part, item.n_parts.bit_length() - 1)
    chosen = _repeated(keys)
    keys, positions = keys[chosen], positions[chosen]
    lower_half = np.empty(len(keys), np.uint64)
    for shard, rows, places in item.sketches.by_shard(positions):
        lower_half[places] = np.load(item.sketches.folders[shard] / "exact.npy", mmap_mode="r")[rows, 1]
    numbers = np.load(item.numbers, mmap_mode="r")[positions]
    order = np.lexsort((numbers, lower_half, keys))
    keys, lower_half, numbers = keys[order], lower_half[order], numbers[order]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (keys[1:] != keys[:-1]) | (lower_half[1:] != lower_half[:-1])
    originals = numbers[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    save_array(folder / "copies.npy", np.stack([numbers, originals], axis=1)[~begins])


def write_candidates(item: BucketItem, folder: Path) -> None:
    """pairs.npy, each pair once, ascending; large.npy with large_ends.npy, the buckets of more than 64."""
    pairs, large = [], [np.empty(0, np.uint32)]
    for band in item.bands:
        numbers, ends = band_buckets(item, band)
        pair_up = _all_pairs if item.verify else _first_pairs
        count = pair_up(numbers, ends, item.n_reserved, item.enabled, np.empty(0, np.uint64))
        pairs.append(np.empty(count, np.uint64))
        pair_up(numbers, ends, item.n_reserved, item.enabled, pairs[-1])
        begins = np.concatenate(([0], ends[:-1])).astype(np.int64)
        for bucket in np.flatnonzero(ends - begins[: len(ends)] > ALL_PAIRS_UP_TO) if item.verify else []:
            large.append(numbers[begins[bucket] : ends[bucket]])
    save_array(folder / "pairs.npy", np.unique(np.concatenate(pairs)))
    save_array(folder / "large.npy", np.concatenate(large))
    save_array(folder / "large_ends.npy", np.cumsum([len(bucket) for bucket in large[1:]], dtype=np.int64))


def band_buckets(item: BucketItem, band: int) -> tuple[Numbers, npt.NDArray[np.int64]]:
    """The documents of the buckets of two or more end to end, each bucket ascending, and where they end."""
    keys, positions = item.sketches.entries(band, item.part, item.n_parts.bit_length() - 1)
    chosen = _repeated(keys)
    keys = keys[chosen]
    numbers = np.load(item.numbers, mmap_mode="r")[positions[chosen]]
    compared = numbers != NONE
    keys, numbers = keys[compared], numbers[compared]
    order = np.argsort(keys)  # in vectors, where np.lexsort takes twice as long
    keys, numbers = keys[order], numbers[order]
    ends = np.flatnonzero(np.concatenate((keys[1:] != keys[:-1], [True]))) + 1 if len(keys) else np.empty(0, np.int64)
    _sort_buckets(numbers, ends)
    return numbers, ends


def _repeated(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The places of keys that occur twice or more, few of most corpora, and of some that do not: the rest need not be
    sorted."""
    bits = (SLOTS_OF_KEY * len(keys)).bit_length()
    return np.flatnonzero(_shares_slot(keys, np.zeros(1 << bits, np.uint8)))


@kernel
def _shares_slot(keys, n_keys):  # type: ignore[no-untyped-def]
    """Which keys end in the same bits as another, given a table of zeros for the number of keys by these bits."""
    mask = np.uint64(len(n_keys) - 1)
    for key in keys:
        n_keys[key & mask] = min(n_keys[key & mask] + 1, 2)
    shared = np.empty(len(keys), np.bool_)
    for at in range(len(keys)):
        shared[at] = n_keys[keys[at] & mask] > 1
    return shared


@kernel
def _sort_buckets(numbers, ends):  # type: ignore[no-untyped-def]
    begin = 0
    for end in ends:
        if end - begin > ALL_PAIRS_UP_TO:
            numbers[begin:end].sort()
        else:
            for place in range(begin + 1, end):
                number = numbers[place]
                while place > begin and numbers[place - 1] > number:
                    numbers[place] = numbers[place - 1]
                    place -= 1
                numbers[place] = number
        begin = end


@kernel
def _all_pairs(numbers: Numbers, ends, n_reserved, enabled, pairs):  # type: ignore[no-untyped-def]
    """Fills `pairs`, if there is room, with all pairs of every small bucket; gives their number."""
    count = begin = 0
    for end in ends:
        if end - begin <= ALL_PAIRS_UP_TO:
            for one in range(begin, end):
                if numbers[one] >= n_reserved and not enabled:
                    break
                for other in range(one + 1, end):
                    if numbers[other] >= n_reserved:
                        if count < len(pairs):
                            pairs[count] = np.uint64(numbers[one]) << np.uint64(32) | np.uint64(numbers[other])
                        count += 1
        begin = end
    return count


@kernel
def _first_pairs(numbers: Numbers, ends, n_reserved, enabled, pairs):  # type: ignore[no-untyped-def]
    """As `_all_pairs`: the first reserved and the first training document of each bucket with its training ones."""
    count = begin = 0
    for end in ends:
        training = begin
        while training < end and numbers[training] < n_reserved:
            training += 1
        for other in range(training, end):
            if training > begin:
                if count < len(pairs):
                    pairs[count] = np.uint64(numbers[begin]) << np.uint64(32) | np.uint64(numbers[other])
                count += 1
            if enabled and other > training:
                if count < len(pairs):
                    pairs[count] = np.uint64(numbers[training]) << np.uint64(32) | np.uint64(numbers[other])
                count += 1
        begin = end
    return count
