"""Finds the pairs of near-duplicates: buckets of equal bands, then verification.

Documents are numbered by preference: 0 is the one that would be kept before all others, and reserved
documents (validation, test) come before all training documents. So nothing here depends on the order
in which documents were given.

A bucket of up to 64 documents gives all its pairs. A larger one is compared in stars, which stay
linear in its size: its first document is the hub and is compared with all others; those that match
leave, and the first that is left is the next hub, up to 64 hubs. A document that leaves has matched
a document that is preferred to it. Example: a bucket of 1,000 copies of template A and 500 of
template B takes 2 stars, 1,499 + 499 comparisons. Before them every reserved document of the bucket
is a hub, without that limit, so that no leak is missed. What stars can miss is a pair of training
documents in which one left for its hub and the other matches only the first, in every band they share.

A pair is compared by signatures first (`precheck`), exactly only if these agree enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from stages.dedup.minhash import Signatures, band_keys, estimates
from stages.dedup.params import DedupParams

ALL_PAIRS_UP_TO = 64
HUBS = 64
Numbers = npt.NDArray[np.int64]
ExactJaccard = Callable[[int, int], float]


class Match(NamedTuple):
    """Two documents that were found to be duplicates; `first` is preferred to `second`."""

    first: int
    second: int
    jaccard: float


class Finder:
    """Finds matches among documents given by their signatures, in order of preference.

    Args:
        signatures: uint32[documents, bands * rows].
        n_reserved: the first so many documents are reserved: they are not compared with each other.
        exact: the exact Jaccard similarity of two documents.
        params: its `enabled` decides whether training documents are compared with each other.
    """

    def __init__(self, signatures: Signatures, n_reserved: int, exact: ExactJaccard, params: DedupParams):
        self.signatures, self.n_reserved, self.exact, self.params = signatures, n_reserved, exact, params
        self.compared: dict[tuple[int, int], float] = {}

    def matches(self) -> list[Match]:
        """All matches in the order of their documents."""
        if not self.params.verify:
            return self._same_bucket()
        small: list[Numbers] = []
        for bucket in self._buckets():
            if len(bucket) <= ALL_PAIRS_UP_TO:
                small.append(self._all_pairs(bucket))
            else:
                self._stars(bucket)
        if small:
            pairs = np.unique(np.concatenate(small), axis=0)
            self._compare(pairs[:, 0], pairs[:, 1])
        threshold = self.params.threshold
        return [Match(*pair, value) for pair, value in sorted(self.compared.items()) if value >= threshold]

    def _buckets(self) -> Iterator[Numbers]:
        """Documents that share a band, ascending, once for each distinct bucket."""
        keys = band_keys(self.signatures, self.params.bands)
        seen: set[bytes] = set()
        for band in range(self.params.bands):
            order = np.argsort(keys[:, band], kind="stable")
            ends = np.flatnonzero(np.diff(keys[order, band])) + 1
            starts = np.concatenate(([0], ends))
            sizes = np.diff(np.concatenate((starts, [len(order)])))
            for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
                bucket = order[start : start + size]
                if bucket[-1] < self.n_reserved or (bucket[0] >= self.n_reserved and not self.params.enabled):
                    continue
                if (name := xxhash.xxh3_128_digest(bucket.tobytes())) not in seen:
                    seen.add(name)
                    yield bucket

    def _all_pairs(self, bucket: Numbers) -> Numbers:
        """int64[pairs, 2] without those that are never compared."""
        first, second = np.triu_indices(len(bucket), k=1)
        pairs = np.stack([bucket[first], bucket[second]], axis=1)
        hubs = self.n_reserved if not self.params.enabled else len(self.signatures)
        return pairs[(pairs[:, 1] >= self.n_reserved) & (pairs[:, 0] < hubs)]

    def _stars(self, bucket: Numbers) -> None:
        reserved, left = bucket[bucket < self.n_reserved], bucket[bucket >= self.n_reserved]
        for hub in reserved:
            left = left[self._compare(np.full(len(left), hub), left) < self.params.threshold]
        for _ in range(HUBS if self.params.enabled else 0):
            if len(left) < 2:
                return
            hub, left = left[0], left[1:]
            left = left[self._compare(np.full(len(left), hub), left) < self.params.threshold]

    def _compare(self, first: Numbers, second: Numbers) -> npt.NDArray[np.float64]:
        """The exact Jaccard of each pair, or 0 where the signatures say that it is too small."""
        result = np.zeros(len(first))
        close = estimates(self.signatures, first, second) >= self.params.precheck
        for at in np.flatnonzero(close):
            pair = (int(first[at]), int(second[at]))
            if pair not in self.compared:
                self.compared[pair] = self.exact(*pair)
            result[at] = self.compared[pair]
        return result

    def _same_bucket(self) -> list[Match]:
        """Without verification: every document matches the first reserved and the first other one of its bucket."""
        found: set[tuple[int, int]] = set()
        for bucket in self._buckets():
            training = bucket[bucket >= self.n_reserved]
            if len(training) < len(bucket):
                found.update((int(bucket[0]), int(document)) for document in training)
            if self.params.enabled:
                found.update((int(training[0]), int(document)) for document in training[1:])
        return [Match(*pair, self.exact(*pair)) for pair in sorted(found)]
