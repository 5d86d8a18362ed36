"""Counts training documents that nearly repeat a reserved one, by an exact method without signatures.

dedup finds leaks by MinHash; this check shares nothing with it but the definition of a shingle, so it
also holds where `dedup.verify` is off or its params are loose. All shingles of the reserved documents
(validation and test) go into one sorted index that says in which of them each occurs. Then one pass
over the training documents looks up their shingles and counts those common with each reserved document.

The Jaccard similarity |A and B| / |A or B| is at most |A and B| / |A|, so B matters only if it has
three quarters of the shingles of some reserved A. Example: A has 100 shingles, B has 80 of them and
10 others: 80 / (100 + 90 - 80) = 0.73, no leak.

Memory grows with the reserved text (about 20 bytes a word), not with the training text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from stages.documents import kept_shards
from stages.progress import progress
from stages.shingles import Shingles, shingle_hashes, shingles_of, words_of
from stages.workers import batches, ordered_map

NGRAM = 5
THRESHOLD = 0.75
BATCH_CHARACTERS = 1 << 20
SIEVE_SIZE = 1 << 22


class Text(NamedTuple):
    id: str
    text: str


class Leak(NamedTuple):
    """A training document and the reserved document that is most like it."""

    training_id: str
    reserved_id: str
    jaccard: float


@dataclasses.dataclass(frozen=True)
class ReservedIndex:
    """Which reserved documents hold which shingles.

    Attributes:
        keys: the distinct shingles of all reserved documents, sorted, uint64[k].
        starts: the documents of keys[i] are documents[starts[i] : starts[i + 1]], int64[k + 1].
        sizes: the number of shingles of each document, int64.
        sieve: whether any key has these low bits: most shingles of the training text end there.
    """

    keys: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    sieve: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, sets: list[Shingles]) -> ReservedIndex:
        sizes = np.array([len(shingles) for shingles in sets], np.int64)
        shingles = np.concatenate([*sets, np.empty(0, np.uint64)])
        order = np.argsort(shingles, kind="stable")
        keys, starts = np.unique(shingles[order], return_index=True)
        sieve = np.zeros(SIEVE_SIZE, np.bool_)
        sieve[_low_bits(keys)] = True
        return cls(keys, np.append(starts, len(shingles)), np.repeat(np.arange(len(sets)), sizes)[order], sizes, sieve)

    def save(self, folder: Path) -> None:
        """One file an array, for workers to map into memory."""
        folder.mkdir(parents=True)
        for field in dataclasses.fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, folder: Path) -> ReservedIndex:
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in dataclasses.fields(cls)))

    def nearest(self, words: list[str]) -> tuple[int, float] | None:
        """The most similar reserved document with its Jaccard similarity, if that reaches the threshold."""
        hashes = shingle_hashes(words, NGRAM)
        found = np.unique(hashes[self.sieve[_low_bits(hashes)]])
        places = np.searchsorted(self.keys, found)
        places = places[self.keys[np.minimum(places, len(self.keys) - 1)] == found]
        first, counts = self.starts[places], self.starts[places + 1] - self.starts[places]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        reserved, common = np.unique(self.documents[np.repeat(first, counts) + within], return_counts=True)
        likely = common >= THRESHOLD * self.sizes[reserved]
        if not likely.any():
            return None
        reserved, common = reserved[likely], common[likely]
        similarities = common / (self.sizes[reserved] + len(np.unique(hashes)) - common)
        best = int(np.argmax(similarities))
        return (int(reserved[best]), float(similarities[best])) if similarities[best] >= THRESHOLD else None


def find_leaks(root: Path, folder: Path, n_workers: int) -> list[Leak]:
    """The kept training documents that nearly repeat a reserved one; `folder` takes the index."""
    reserved: list[str] = []
    sets: list[Shingles] = []
    for batch in ordered_map(shingle_sets, text_batches(root, reserved=True), n_workers):
        reserved += [name for name, _ in batch]
        sets += [shingles for _, shingles in batch]
    ReservedIndex.of(sets).save(folder)
    leaks: list[Leak] = []
    with progress("pack: compared with reserved text", None, "documents") as bar:
        nearest = functools.partial(nearest_reserved, folder=folder)
        for found in ordered_map(nearest, text_batches(root, reserved=False), n_workers):
            leaks += [Leak(name, reserved[near[0]], near[1]) for name, near in found if near]
            bar.update(len(found))
    return leaks


def text_batches(root: Path, reserved: bool) -> Iterator[list[Text]]:
    """The kept reserved documents, or the kept training documents, in batches of about a million characters."""
    columns = ["id", "text", "split"]

    def texts() -> Iterator[Text]:
        for table in kept_shards(root / "data/clean/documents", root / "data/dedup/keep.parquet", columns):
            wanted = table.filter(pc.equal(pc.equal(table["split"], "train"), not reserved))
            yield from map(Text, wanted["id"].to_pylist(), wanted["text"].to_pylist())

    return batches(texts(), lambda text: len(text.text), BATCH_CHARACTERS)


def shingle_sets(batch: list[Text]) -> list[tuple[str, Shingles]]:
    return [(name, shingles_of(words_of(text), NGRAM)) for name, text in batch]


def nearest_reserved(batch: list[Text], folder: Path) -> list[tuple[str, tuple[int, float] | None]]:
    index = ReservedIndex.open(folder)
    return [(name, index.nearest(words_of(text))) for name, text in batch]


def _low_bits(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    return (hashes & np.uint64(SIEVE_SIZE - 1)).astype(np.intp)
