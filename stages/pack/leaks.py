"""Counts training documents that nearly repeat a reserved one, by an exact method without signatures.

dedup finds leaks by MinHash; this check shares nothing with it but the definition of a shingle, so it
also holds where `dedup.verify` is off or its params are loose. All shingles of the reserved documents
(validation and test) go into a sorted index that says in which of them each occurs (reserved.py). Then a pass
over the training documents looks up their shingles and counts those common with each reserved document.

The Jaccard similarity |A and B| / |A or B| is at most |A and B| / |A|, so B matters only if it has
three quarters of the shingles of some reserved A. Example: A has 100 shingles, B has 80 of them and
10 others: 80 / (100 + 90 - 80) = 0.73, no leak.

Where the reserved text has more than 4 million shingles (about 28 MB), its documents are taken in groups. A training
shard is read once: the shingles of some of its text are held and compared with one group after another, so that a
worker's memory does not grow with the corpus, while its work does with the number of groups. Every step is tasks over
the shards (stages/tasks.py), with one small result for each: a shard that changes is looked at again, the others only
where the reserved text changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.entry import Job
from stages.files import content_hash
from stages.kept import Part
from stages.pack.encode import by_bytes
from stages.pack.reserved import THRESHOLD, ReservedIndex, Seen
from stages.shingles import Hashes, distinct, normalisation_name, shingle_texts
from stages.store import save_array
from stages.tasks import Task, results
from stages.utf8 import Offsets, text_buffers

NGRAM = 5
GROUP_SHINGLES = 1 << 22
HELD_SHINGLES = 1 << 21  # of training text, 16 MB: to open a group's index takes little beside comparing so many
FILE = "leaks.parquet"
FOUND = pa.schema([("id", pa.string()), ("reserved_id", pa.string()), ("jaccard", pa.float64())])


class Leak(NamedTuple):
    """A training document and the reserved document that is most like it."""

    training_id: str
    reserved_id: str
    jaccard: float


class Some(NamedTuple):
    """Reserved documents of a shard: the folder of their sets, and which of them."""

    folder: Path
    first: int
    last: int


def find_leaks(job: Job, parts: Sequence[Part]) -> list[Leak]:
    """The kept training documents that nearly repeat a reserved one."""
    scheme = (normalisation_name(), NGRAM)
    tasks = [Task(job.key("reserved", part.digest, part.kept.hex(), scheme), part) for part in parts]
    groups = list(grouped(list(results(job, "reserved", write_reserved, tasks))))
    names = {some.folder: content_hash(some.folder) for group in groups for some in group}  # of the reserved text alone
    tasks = [Task(job.key("index", [[names[some.folder], *some[1:]] for some in group]), group) for group in groups]
    indices = list(results(job, "index", write_index, tasks, "groups"))
    if not indices:
        return []
    about = (scheme, [index.name for index in indices])
    tasks = [Task(job.key("leaks", part.digest, part.kept.hex(), about), part) for part in parts]
    leaks: list[Leak] = []
    for folder in results(job, "leaks", functools.partial(write_leaks, indices=indices), tasks):
        leaks += map(Leak._make, zip(*pq.read_table(folder / FILE).to_pydict().values(), strict=True))
    return leaks


def texts_of(part: Part, reserved: bool) -> Iterator[pa.RecordBatch]:
    """The kept reserved documents of a shard, or its kept training documents, about a megabyte at a time."""
    for batch in part.batches(["id", "text", "split"]):
        yield from by_bytes(batch.filter(pc.equal(pc.equal(batch["split"], "train"), not reserved)))


# The reserved text


def write_reserved(part: Part, folder: Path) -> None:
    """The ids of the shard's reserved documents, and their distinct shingles end to end."""
    ids, shingles, sizes = [pa.nulls(0, pa.string())], [np.empty(0, np.uint64)], [np.zeros(1, np.int64)]
    for piece in texts_of(part, reserved=True):
        shingled = shingle_texts(*text_buffers(piece["text"]), NGRAM)
        found, ends = distinct(shingled.shingles, shingled.ends)
        ids.append(piece["id"])
        shingles.append(found)
        sizes.append(np.diff(ends))
    pq.write_table(pa.table({"id": pa.concat_arrays(ids)}), folder / "ids.parquet")
    save_array(folder / "shingles.npy", np.concatenate(shingles))
    save_array(folder / "ends.npy", np.cumsum(np.concatenate(sizes)))


def grouped(folders: Sequence[Path]) -> Iterator[list[Some]]:
    """The reserved documents in groups of up to `GROUP_SHINGLES` shingles, or of one document."""
    group: list[Some] = []
    room = GROUP_SHINGLES
    for folder in folders:
        ends, first = np.load(folder / "ends.npy"), 0
        while first < len(ends) - 1:
            last = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
            if last <= first and group:
                yield group
                group, room = [], GROUP_SHINGLES
                continue
            last = max(last, first + 1)
            group.append(Some(folder, first, last))
            room -= int(ends[last] - ends[first])
            first = last
    if group:
        yield group


def write_index(group: list[Some], folder: Path) -> None:
    """The index of a group of reserved documents, and their ids."""
    ids, shingles, sizes = [], [], [np.zeros(1, np.int64)]
    for place, first, last in group:
        ends = np.load(place / "ends.npy")[first : last + 1]
        ids.append(pq.read_table(place / "ids.parquet").slice(first, last - first))
        shingles.append(np.load(place / "shingles.npy", mmap_mode="r")[ends[0] : ends[-1]])
        sizes.append(np.diff(ends))
    pq.write_table(pa.concat_tables(ids), folder / "ids.parquet")
    ReservedIndex.of(shingles, np.cumsum(np.concatenate(sizes))).save(folder)


# The training text


class Held(NamedTuple):
    """Training texts as shingles (stages/shingles.py), without the texts."""

    ids: pa.Array
    shingles: Hashes
    ends: Offsets


def write_leaks(part: Part, folder: Path, indices: Sequence[Path]) -> None:
    """The training documents of a shard that nearly repeat a reserved one, with the one most like each."""
    rows = []
    number = 1  # of a text beside an index: each is looked up under a number of its own
    seen = np.zeros(0, np.int32)
    # one index stays open from piece to piece, and then nothing needs to be held
    for texts in held(part, HELD_SHINGLES if len(indices) > 1 else 1):
        best: dict[str, Leak] = {}
        for place in indices:
            index, reserved_ids = opened(place)
            if len(seen) < len(index.keys):
                seen = np.zeros(len(index.keys), np.int32)
            for some in texts:
                for text, reserved, jaccard in near(some, index, seen, number):
                    leak = Leak(some.ids[text].as_py(), reserved_ids[reserved].as_py(), jaccard)
                    if leak.training_id not in best or best[leak.training_id].jaccard < jaccard:
                        best[leak.training_id] = leak
                number += len(some.ids)
        rows += [dict(zip(FOUND.names, leak, strict=True)) for leak in best.values()]
    pq.write_table(pa.Table.from_pylist(rows, FOUND), folder / FILE)


def held(part: Part, n_shingles: int) -> Iterator[list[Held]]:
    """The shingles of a shard's training texts, in pieces that together have about `n_shingles`."""
    texts: list[Held] = []
    n_held = 0
    for piece in texts_of(part, reserved=False):
        shingled = shingle_texts(*text_buffers(piece["text"]), NGRAM)
        texts.append(Held(piece["id"], shingled.shingles.copy(), shingled.ends))  # a copy, not its larger buffer
        n_held += len(shingled.shingles)
        if n_held >= n_shingles:
            yield texts
            texts, n_held = [], 0
    if texts:
        yield texts


def near(texts: Held, index: ReservedIndex, seen: Seen, first: int) -> Iterator[tuple[int, int, float]]:
    """(text, reserved document, Jaccard similarity) of the texts near a reserved one, for the one most like each."""
    best: dict[int, tuple[float, int]] = {}
    for text, reserved, common in index.common(texts.shingles, texts.ends, seen, first).tolist():
        begin, end = texts.ends[text : text + 2]
        own = len(distinct(texts.shingles[begin:end], np.array([0, end - begin]))[0])
        jaccard = common / (int(index.sizes[reserved]) + own - common)
        if jaccard >= THRESHOLD and (text not in best or best[text] < (jaccard, -reserved)):
            best[text] = (jaccard, -reserved)
    yield from ((text, -reserved, jaccard) for text, (jaccard, reserved) in sorted(best.items()))


@functools.lru_cache(maxsize=1)  # an open index has files mapped, of which a process may have about a thousand
def opened(folder: Path) -> tuple[ReservedIndex, pa.ChunkedArray]:
    """The index of a group and the ids of its documents."""
    return ReservedIndex.open(folder), pq.read_table(folder / "ids.parquet")["id"]
