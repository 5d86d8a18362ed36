"""Compares large buckets in stars, so that work stays linear in their size.

The hub of a star is compared with all other documents of its bucket; those that match leave: each has matched a
document that is preferred to it. Then the first that is left is the next hub, up to 64 of them. Example:
1,000 copies of template A and 500 of template B take 2 stars, 1,499 + 499 comparisons. Before them every
reserved document is a hub, without that limit, so that no leak is missed.

Hubs of all buckets are compared in rounds, of 1, 4, 16 and 43 hubs a bucket, because a round costs as much
for one pair as for a thousand. What stars can miss is a pair of training documents in which one left for
its hub and the other matches only the first, in every band they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from stages.dedup.buckets import Pairs
from stages.dedup.compare import joined_pairs, pairs_that_agree
from stages.dedup.order import load_positions
from stages.dedup.sketch import Numbers, Sketches
from stages.entry import Job
from stages.store import save_array
from stages.tasks import Task, results

HUBS = 64
GROWTH = 4
Matches = tuple[Pairs, npt.NDArray[np.float64]]


@dataclasses.dataclass
class Bucket:
    """A large bucket on its way: numbers ascending, reserved hubs still to come, training documents that are left."""

    reserved: Numbers
    left: Numbers
    batch: int = 1
    hubs_used: int = 0

    def hubs(self, enabled: bool) -> Numbers:
        """The hubs of the next round; none when the bucket is done."""
        if not len(self.left):
            return self.left
        if len(self.reserved):
            return self.reserved[: self.batch]
        if not enabled or len(self.left) < 2:
            return self.left[:0]
        return self.left[: min(self.batch, HUBS - self.hubs_used)]

    def advance(self, hubs: Numbers, matches: Pairs) -> None:
        """Takes the hubs of a round away, and the documents that match one of them."""
        if len(self.reserved):
            self.reserved = self.reserved[len(hubs) :]
            self.batch = self.batch * GROWTH if len(self.reserved) else 1
        else:
            self.left = self.left[len(hubs) :]
            self.hubs_used += len(hubs)
            self.batch *= GROWTH
        for hub in hubs.tolist():
            begin, end = np.searchsorted(matches, np.array([hub << 32, (hub + 1) << 32], np.uint64))
            self.left = np.setdiff1d(self.left, matches[begin:end].astype(np.uint32), assume_unique=True)


class StarItem(NamedTuple):
    sketches: Sketches
    order: Path
    hubs: Numbers
    others: Numbers
    precheck: float


def star_matches(
    job: Job,
    sketches: Sketches,
    order: Path,
    buckets: Sequence[Bucket],
    compare: Callable[[Pairs], npt.NDArray[np.float64]],
    params: tuple[bool, float, float],
) -> Matches:
    """All pairs of stars that match, ascending, with their exact similarity.

    Args:
        compare: the exact Jaccard similarity of ascending pairs.
        params: enabled, precheck, threshold.
    """
    enabled, precheck, threshold = params
    pairs, jaccards = np.empty(0, np.uint64), np.empty(0)
    alive = list(buckets)
    while alive:
        rounds = [(bucket, hubs) for bucket in alive if len(hubs := bucket.hubs(enabled))]
        items = [StarItem(sketches, order, hubs, bucket.left, precheck) for bucket, hubs in rounds]
        tasks = [Task(job.key("stars", order.name, *map(_digest, item[2:4]), precheck), item) for item in items]
        found = [np.load(folder / "pairs.npy") for folder in results(job, "stars", write_star, tasks, "buckets")]
        fresh = np.setdiff1d(np.concatenate([*found, np.empty(0, np.uint64)]), pairs)
        pairs, jaccards = _merged(pairs, jaccards, fresh, compare(fresh))
        for bucket, hubs in rounds:
            bucket.advance(hubs, pairs[jaccards >= threshold])
        alive = [bucket for bucket, _ in rounds]
    return pairs[jaccards >= threshold], jaccards[jaccards >= threshold]


def write_star(item: StarItem, folder: Path) -> None:
    """pairs.npy: those of each hub with the documents after it whose signatures agree enough."""
    positions = load_positions(item.order)
    found = [np.empty(0, np.uint64)]
    for hub in item.hubs:
        others = item.others[item.others > hub]
        pairs = joined_pairs(np.full(len(others), hub), others)
        found.append(pairs_that_agree(item.sketches, positions, pairs, item.precheck))
    save_array(folder / "pairs.npy", np.unique(np.concatenate(found)))


def large_buckets(folders: Sequence[Path], n_reserved: int) -> Iterator[Bucket]:
    """Each distinct large bucket of the candidates' folders that has a pair to compare."""
    seen: set[bytes] = set()
    for folder in folders:
        numbers, ends = np.load(folder / "large.npy"), np.load(folder / "large_ends.npy")
        for bucket in np.split(numbers, ends[:-1]) if len(ends) else []:
            name = xxhash.xxh3_128_digest(bucket.tobytes())
            if name not in seen:
                seen.add(name)
                yield Bucket(bucket[bucket < n_reserved], bucket[bucket >= n_reserved])


def _merged(
    pairs: Pairs, jaccards: npt.NDArray[np.float64], more: Pairs, more_jaccards: npt.NDArray[np.float64]
) -> Matches:
    """Two ascending lists as one."""
    both = np.concatenate((pairs, more))
    order = np.argsort(both, kind="stable")
    return both[order], np.concatenate((jaccards, more_jaccards))[order]


def _digest(values: Numbers) -> str:
    return xxhash.xxh3_128_hexdigest(values.tobytes())
