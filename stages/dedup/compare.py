"""Compares pairs: by signatures first, then exactly, reading the texts of the documents that are left alone.

    candidates   pairs of all bands, in ranges of about a million; each once   -> estimated J >= precheck
    shingle sets per clean shard, of the documents that are still needed       -> distinct shingles
    exact        chunks of pairs with about 2 million shingles between them    -> Jaccard

Each line is a step of tasks (stages/tasks.py), so a killed comparison goes on. Two sets are compared by
putting the first into a hash table and looking up the second; pairs lie sorted by their first document, whose
table then serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from stages.compiled import kernel
from stages.dedup.buckets import Pairs
from stages.dedup.minhash import estimates
from stages.dedup.order import load_positions
from stages.dedup.params import DedupParams
from stages.dedup.sketch import Numbers, Sketches, mapped, read_batches, shingled_batch
from stages.entry import Job
from stages.shingles import Hashes, distinct
from stages.store import append_array, save_array
from stages.tasks import Task, results
from stages.utf8 import Offsets, text_buffers

RANGE_PAIRS = 1 << 20
CHUNK_PAIRS = 1 << 15
CHUNK_SHINGLES = 1 << 21
SAMPLE = 1 << 8


def split_pairs(pairs: Pairs) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first and the second document of each."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def joined_pairs(first: np.ndarray, second: np.ndarray) -> Pairs:
    return first.astype(np.uint64) << np.uint64(32) | second.astype(np.uint64)


def _digest(values: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(values.tobytes())


# By signatures


class PrecheckItem(NamedTuple):
    """The pairs from `begin` up to but without `end` in sorted files."""

    sketches: Sketches
    order: Path
    files: list[Path]
    begin: int
    end: int
    precheck: float


def close_pairs(job: Job, sketches: Sketches, order: Path, folders: Sequence[Path], precheck: float) -> list[Path]:
    """Files with the pairs of all candidates that agree enough, each once; ascending within and over the files."""
    files = [folder / "pairs.npy" for folder in folders]
    key = [folder.name for folder in [order, *folders]]
    bounds = range_bounds(files)
    tasks = [
        Task(job.key("precheck", key, begin, end, precheck), PrecheckItem(sketches, order, files, begin, end, precheck))
        for begin, end in pairwise(bounds)
    ]
    return [folder / "pairs.npy" for folder in results(job, "precheck", write_close_pairs, tasks, "ranges")]


def range_bounds(files: list[Path]) -> list[int]:
    """Numbers that cut the pairs of sorted files into ranges of about `RANGE_PAIRS`, repeats counted."""
    samples = [np.array(np.load(file, mmap_mode="r")[SAMPLE // 2 :: SAMPLE]) for file in files]
    sample = np.sort(np.concatenate([*samples, np.empty(0, np.uint64)]))
    inner = np.unique(sample[RANGE_PAIRS // SAMPLE :: RANGE_PAIRS // SAMPLE])
    return [0, *map(int, inner), 1 << 64]


def write_close_pairs(item: PrecheckItem, folder: Path) -> None:
    parts = [np.empty(0, np.uint64)]
    for file in item.files:
        pairs = np.load(file, mmap_mode="r")
        begin = int(np.searchsorted(pairs, np.uint64(item.begin)))
        end = len(pairs) if item.end == 1 << 64 else int(np.searchsorted(pairs, np.uint64(item.end)))
        parts.append(np.array(pairs[begin:end]))
    unique = np.unique(np.concatenate(parts))
    save_array(folder / "pairs.npy", pairs_that_agree(item.sketches, load_positions(item.order), unique, item.precheck))


def pairs_that_agree(sketches: Sketches, positions: Numbers, pairs: Pairs, precheck: float) -> Pairs:
    """Those whose estimated Jaccard similarity is `precheck` or more."""
    kept = [np.empty(0, np.uint64)]
    for at in range(0, len(pairs), CHUNK_PAIRS):
        chunk = pairs[at : at + CHUNK_PAIRS]
        kept.append(chunk[estimated_jaccards(sketches, positions, chunk) >= np.float32(precheck)])
    return np.concatenate(kept)


def estimated_jaccards(sketches: Sketches, positions: Numbers, pairs: Pairs) -> npt.NDArray[np.float32]:
    documents, places = np.unique(np.concatenate(split_pairs(pairs)), return_inverse=True)
    signatures = sketches.signatures(positions[documents].astype(np.int64))
    return estimates(signatures, places[: len(pairs)], places[len(pairs) :])


# Exactly


class SetsItem(NamedTuple):
    """The documents of a shard whose sets of shingles are needed; rows ascending."""

    path: Path
    rows: npt.NDArray[np.int64]
    ngram: int


class Sets(NamedTuple):
    """Sets of shingles in files of tasks: which document is where.

    Attributes:
        documents: their numbers, ascending.
        folders: files with the sets, `shingles.bin`, and the texts.
        places: in which of them each document is.
        begins, sizes: where in it, and how many distinct shingles, int64.
    """

    documents: npt.NDArray[np.int64]
    folders: list[Path]
    places: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class ExactItem(NamedTuple):
    pairs: Pairs
    sets: Sets


def exact_jaccards(
    job: Job, sketches: Sketches, order: Path, pairs: Pairs, params: DedupParams, made: list[Sets]
) -> npt.NDArray[np.float64]:
    """The exact Jaccard similarity of each pair, for pairs in ascending order; adds the sets it needs to `made`."""
    if not len(pairs):
        return np.empty(0)
    sets = shingle_sets(job, sketches, load_positions(order), pairs, params)
    made.append(sets)
    first, second = split_pairs(pairs)
    sizes = sum(sets.sizes[np.searchsorted(sets.documents, documents)] for documents in (first, second))
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // CHUNK_SHINGLES)) + 1
    tasks = []
    for chunk in np.split(pairs, cuts):
        needed = _subset(sets, np.unique(np.concatenate(split_pairs(chunk))))
        key = job.key("exact", _digest(chunk), [folder.name for folder in needed.folders])
        tasks.append(Task(key, ExactItem(chunk, needed)))
    return np.concatenate(
        [np.load(folder / "jaccards.npy") for folder in results(job, "exact", write_jaccards, tasks, "chunks")]
    )


def shingle_sets(job: Job, sketches: Sketches, positions: Numbers, pairs: Pairs, params: DedupParams) -> Sets:
    """The sets of all documents in the pairs, made shard by shard."""
    documents = np.unique(np.concatenate(split_pairs(pairs)))
    tasks, members = [], []
    for shard, rows, places in sketches.by_shard(positions[documents].astype(np.int64)):
        ascending = np.argsort(rows, kind="stable")
        rows = rows[ascending]
        key = job.key("sets", sketches.folders[shard].name, _digest(rows), params.ngram)
        tasks.append(Task(key, SetsItem(sketches.shards[shard], rows, params.ngram)))
        members.append(places[ascending])
    found = Sets(documents, [], *(np.empty(len(documents), np.int64) for _ in range(3)))
    for number, folder in enumerate(results(job, "sets", write_sets, tasks)):
        ends = np.load(folder / "ends.npy")
        found.folders.append(folder)
        found.places[members[number]] = number
        found.begins[members[number]] = ends[:-1]
        found.sizes[members[number]] = np.diff(ends)
    return found


def write_sets(item: SetsItem, folder: Path) -> None:
    """shingles.bin, the distinct shingles of the wanted documents end to end, and ends.npy; the same of their texts.

    The page of clusters shows some of the texts, and would unpack as many shards again for them.
    """
    counts, sizes = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    with (folder / "shingles.bin").open("wb") as file, (folder / "texts.bin").open("wb") as texts:
        for batch in read_batches(item.path, ["text"], item.rows):
            shingled, text_sizes = shingled_batch(batch.column("text"), item.ngram)
            shingles, ends = distinct(shingled.shingles, shingled.ends)
            append_array(file, shingles)
            counts.append(np.diff(ends))
            append_array(texts, text_buffers(batch.column("text"))[0])
            sizes.append(text_sizes)
    save_array(folder / "ends.npy", np.cumsum(np.concatenate(counts)))
    save_array(folder / "text_ends.npy", np.cumsum(np.concatenate(sizes)))


def text_of(sets: Sets, document: int, limit: int) -> bytes | None:
    """The first bytes of a document's text, if its set was made."""
    at = int(np.searchsorted(sets.documents, document))
    if at == len(sets.documents) or sets.documents[at] != document:
        return None
    folder = sets.folders[sets.places[at]]
    place = int(np.searchsorted(np.load(folder / "ends.npy", mmap_mode="r"), sets.begins[at]))  # no set is empty
    begin, end = np.load(folder / "text_ends.npy", mmap_mode="r")[place : place + 2].tolist()
    return mapped(folder / "texts.bin", np.uint8)[begin : min(end, begin + limit)].tobytes()


def write_jaccards(item: ExactItem, folder: Path) -> None:
    shingles, ends = gathered(item.sets)
    first, second = (np.searchsorted(item.sets.documents, documents) for documents in split_pairs(item.pairs))
    common = count_common(shingles, ends, first, second)
    sizes = np.diff(ends)
    save_array(folder / "jaccards.npy", common / (sizes[first] + sizes[second] - common))


def gathered(sets: Sets) -> tuple[Hashes, Offsets]:
    """The sets end to end, in the order of their documents."""
    ends = np.concatenate(([0], np.cumsum(sets.sizes)))
    shingles = np.empty(ends[-1], np.uint64)
    for number, folder in enumerate(sets.folders):
        members = np.flatnonzero(sets.places == number)
        stored = mapped(folder / "shingles.bin", np.uint64)
        for target, begin, size in np.stack([ends[members], sets.begins[members], sets.sizes[members]], 1).tolist():
            shingles[target : target + size] = stored[begin : begin + size]
    return shingles, ends


def _subset(sets: Sets, documents: npt.NDArray[np.int64]) -> Sets:
    """What of the sets a task needs for some documents."""
    at = np.searchsorted(sets.documents, documents)
    used, places = np.unique(sets.places[at], return_inverse=True)
    return Sets(documents, [sets.folders[number] for number in used], places, sets.begins[at], sets.sizes[at])


@kernel
def count_common(shingles, ends, first, second):  # type: ignore[no-untyped-def]
    """The number of shingles common to the sets first[i] and second[i], for every i."""
    largest = 0
    for document in range(len(ends) - 1):
        largest = max(largest, ends[document + 1] - ends[document])
    size = 2
    while size < 2 * largest:
        size *= 2
    table = np.zeros(size, np.uint64)
    common = np.zeros(len(first), np.int64)
    mask, held = np.uint64(0), -1
    for pair in range(len(first)):
        if first[pair] != held:
            held = first[pair]
            size = 2
            while size < 2 * (ends[held + 1] - ends[held]):
                size *= 2
            mask = np.uint64(size - 1)
            table[:size] = 0
            for at in range(ends[held], ends[held + 1]):
                place = shingles[at] & mask
                while table[place] != 0:
                    place = (place + np.uint64(1)) & mask
                table[place] = shingles[at]
        for at in range(ends[second[pair]], ends[second[pair] + 1]):
            place = shingles[at] & mask
            while table[place] != 0 and table[place] != shingles[at]:
                place = (place + np.uint64(1)) & mask
            common[pair] += table[place] != 0
    return common
