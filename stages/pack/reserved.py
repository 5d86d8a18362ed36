"""Which reserved documents (validation, test) hold which shingles, and how many of them a training text has in common.

All shingles of a group of reserved documents stand sorted, each with the documents that hold it. A shingle of training
text first meets a bit of the sieve, where nearly all that is in no reserved document ends; then the few keys that begin
with the same bits:

    keys   12.. 17.. 1f.. 33..     firsts   of keys that begin with 0, 1, 2, 3: 0 0 3 3 4     look for 17.. in keys[0:3]

Memory of a worker is bounded, for a group has at most 4 million shingles or is one document (leaks.py): where an index
is made, about 29 bytes for each; where it is read, 21 to 26 in files that workers map and share, and 4 of each worker's
own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.compiled import kernel
from stages.shingles import Hashes
from stages.store import save_array
from stages.utf8 import Offsets

THRESHOLD = 0.75
SIEVE_BITS = 32  # for each key
KEYS_OF_PREFIX = 4
ONE = np.uint64(1)
Counts = npt.NDArray[np.int64]
Seen = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class ReservedIndex:
    """Which reserved documents hold which shingles.

    Attributes:
        keys: the distinct shingles of all reserved documents, sorted, uint64[k]; none is 0 (stages/shingles.py).
        firsts: the keys that begin with the bits p are keys[firsts[p] : firsts[p + 1]], int32.
        starts: the documents of keys[i] are documents[starts[i] : starts[i + 1]], int32[k + 1].
        sizes: the number of shingles of each document, int64.
        sieve: a bit for some low bits of a key, set if a key has these: most shingles of training text end there.
    """

    keys: Hashes
    firsts: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int32]
    sizes: Counts
    sieve: Hashes

    @classmethod
    def of(cls, sets: list[Hashes], ends: Offsets) -> ReservedIndex:
        """Of the sets of documents, end to end; takes the arrays out of the list."""
        shingles, sizes = np.concatenate(sets), np.diff(ends)
        sets.clear()
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
        starts = np.append(starts, np.int32(len(shingles)))
        return cls(keys, firsts_of(keys), starts, documents, sizes, sieve)

    def save(self, folder: Path) -> None:
        """One file an array, for workers to map into memory."""
        for field in dataclasses.fields(self):
            save_array(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> ReservedIndex:
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in dataclasses.fields(cls)))

    def common(self, shingles: Hashes, ends: Offsets, seen: Seen, first: int) -> Counts:
        """(text, reserved document, common shingles) where these are three quarters of the reserved document's.

        Args:
            shingles, ends: of texts, as stages/shingles.py gives them.
            seen: int32[k] or longer, 0 at first: in which text each key was seen last.
            first: the number of the first of these texts, from 1; a number that `seen` has met must not come again,
                not with another index either.
        """
        limits = np.ceil(THRESHOLD * self.sizes).astype(np.int64)
        arrays = (self.keys, self.firsts, self.starts, self.documents, self.sieve, limits)
        return _count(shingles, ends, *arrays, seen, first)


def firsts_of(keys: Hashes) -> npt.NDArray[np.int32]:
    """Where the keys of each prefix begin, and the last ones end: a power of two of prefixes, and one."""
    bits = max((len(keys) // KEYS_OF_PREFIX).bit_length(), 1)
    prefixes = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, prefixes), len(keys)).astype(np.int32)


@kernel
def _fill_sieve(keys, sieve):  # type: ignore[no-untyped-def]
    for key in keys:
        sieve[(key >> np.uint64(6)) & np.uint64(len(sieve) - 1)] |= ONE << (key & np.uint64(63))


@kernel
def _count(shingles, ends, keys, firsts, starts, documents, sieve, limits, seen, first):  # type: ignore[no-untyped-def]
    counts, touched = np.zeros(len(limits), np.int32), np.empty(len(limits), np.int32)
    mask, shift = np.uint64(len(sieve) - 1), np.uint64(64)
    while (len(firsts) - 1) >> np.int64(np.uint64(64) - shift) > 1:
        shift -= ONE
    rows, n_rows = np.empty((64, 3), np.int64), 0
    for text in range(len(ends) - 1):
        n_touched = 0
        for at in range(ends[text], ends[text + 1]):
            value = max(shingles[at], ONE)
            if (sieve[(value >> np.uint64(6)) & mask] >> (value & np.uint64(63))) & ONE == 0:
                continue
            prefix = value >> shift
            key, end = firsts[prefix], firsts[prefix + ONE]
            while key < end and keys[key] < value:
                key += 1
            if key == end or keys[key] != value or seen[key] == first + text:
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
