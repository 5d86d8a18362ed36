"""Interpolated Kneser-Ney n-grams: what a model must beat before its loss means anything.

Each order discounts its counts by D and hands the mass it saved to the next lower order:

    p(w | u v) = max(c(u v w) - D, 0) / c(u v .)  +  D * types(u v .) / c(u v .) * p(w | v)

The highest order counts events. A lower order counts in how many different contexts an n-gram was
seen (its continuation count). Below the unigrams lies the uniform distribution over the vocabulary,
so that every symbol has a probability. A context never seen leaves everything to the lower order.
D = n1 / (n1 + 2 n2) per order, with n1 and n2 the numbers of n-grams counted once and twice.

Example: the documents "ab" and "ac" in the vocabulary a, b, c and E, the end, which also stands for
the beginning. Bigrams: Ea twice; ab, bE, ac, cE once: D = 4 / (4 + 2) = 2/3. Continuation counts:
a 1, b 1, c 1, E 2, so D = 3 / (3 + 2) = 0.6 and p(b) = (1 - 0.6)/5 + 0.6 * 4/5 * 1/4 = 0.2. Then
p(b | a) = (1 - 2/3)/2 + 2/3 * 2/2 * 0.2 = 0.3.

An n-gram is one packed integer of 64 bits, the last symbol in its lowest digit, so counting is one
sort and looking up is one binary search. Where the n-grams come from is events.py's work.

Sources: Kneser and Ney 1995, Improved backing-off for m-gram language modeling; Chen and Goodman
1998, An empirical study of smoothing techniques for language modeling, section 2.7.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
FALLBACK_DISCOUNT = 0.5  # where no n-gram was counted exactly once, as for bytes in a long text


@dataclasses.dataclass(frozen=True)
class Level:
    """The counts of one order.

    Attributes:
        keys: the packed n-grams seen, sorted, [N].
        counts: the count of each, a continuation count below the highest order, [N].
        contexts: the contexts seen, the keys without their last symbol, sorted, [C].
        totals: the sum of the counts in each context, [C].
        types: the number of n-grams in each context, [C].
        discount: D.
    """

    keys: Keys
    counts: NDArray[np.int64]
    contexts: Keys
    totals: NDArray[np.int64]
    types: NDArray[np.int64]
    discount: float


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """A fitted model.

    Attributes:
        levels: unigrams first.
        base: the number of different symbols in a context; the base of the packed keys.
        vocab_size: the number of symbols that can be predicted; symbols at or above it occur in
            contexts only.
    """

    levels: tuple[Level, ...]
    base: int
    vocab_size: int

    def probabilities(self, keys: Keys) -> NDArray[np.float64]:
        """p(last symbol | the symbols before it) for packed n-grams of the highest order, [N]."""
        result = np.full(len(keys), 1 / self.vocab_size)
        for order, level in enumerate(self.levels, start=1):
            keys_of_order = keys % np.uint64(self.base**order) if order < len(self.levels) else keys
            counts = _look_up(level.keys, level.counts, keys_of_order)
            contexts = keys_of_order // np.uint64(self.base)
            totals = _look_up(level.contexts, level.totals, contexts)
            types = _look_up(level.contexts, level.types, contexts)
            seen = totals > 0
            divisor = np.where(seen, totals, 1)
            kept = np.maximum(counts - level.discount, 0) / divisor
            handed_down = np.where(seen, level.discount * types / divisor, 1.0)
            result = kept + handed_down * result
        return result

    def nll(self, keys: Keys) -> float:
        """The sum of -ln p over packed n-grams, in nats."""
        return float(-np.log(self.probabilities(keys)).sum())


def fit(keys: Keys, order: int, base: int, vocab_size: int) -> KneserNey:
    """Counts the packed n-grams of a text, one per event, and estimates the discounts.

    Without any n-gram the model is the uniform distribution.
    """
    if not len(keys):
        return KneserNey((), base, vocab_size)
    types, counts = np.unique(keys, return_counts=True)
    levels = [_level(types, counts, base)]
    for lower in range(order - 1, 0, -1):
        types, counts = np.unique(types % np.uint64(base**lower), return_counts=True)
        levels.append(_level(types, counts, base))
    return KneserNey(tuple(reversed(levels)), base, vocab_size)


def _level(keys: Keys, counts: NDArray[np.int64], base: int) -> Level:
    contexts, first = np.unique(keys // np.uint64(base), return_index=True)
    totals = np.add.reduceat(counts, first)
    types = np.diff(np.append(first, len(keys)))
    return Level(keys, counts, contexts, totals, types, estimate_discount(counts))


def estimate_discount(counts: NDArray[np.int64]) -> float:
    """D = n1 / (n1 + 2 n2) of the counts of one order."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else FALLBACK_DISCOUNT


def _look_up(table: Keys, values: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """The value of each key, 0 for a key that is not in the sorted table."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[index] == keys, values[index], 0)
