"""Modified Kneser-Ney n-grams: what a model must beat before its loss means anything.

Each order discounts its counts and hands the mass it saved to the next lower order:

    p(w | u v) = (c(u v w) - D(c)) / c(u v .)  +  saved(u v .) / c(u v .) * p(w | v)

The highest order counts events. A lower order counts in how many different contexts an n-gram was
seen (its continuation count). Below the unigrams lies the uniform distribution over the vocabulary,
so that every symbol has a probability. A context never seen leaves everything to the lower order.
Each order has three discounts, D1 of what was counted once, D2 twice, D3 more often. With n1 to n4 the
numbers of n-grams counted once to four times, and Y = n1 / (n1 + 2 n2):

    D1 = 1 - 2 Y n2/n1    D2 = 2 - 3 Y n3/n2    D3 = 3 - 4 Y n4/n3

where one of n2 to n4 is 0, a text is too small for three, and all three are Y.

Example: the documents "ab" and "ac" in the vocabulary a, b, c and E, the end, which also stands for
the beginning. Bigrams: Ea twice; ab, bE, ac, cE once: Y = 4 / (4 + 2) = 2/3. Continuation counts:
a 1, b 1, c 1, E 2, so Y = 3 / (3 + 2) = 0.6 and p(b) = (1 - 0.6)/5 + 0.6 * 4/5 * 1/4 = 0.2. Then
p(b | a) = (1 - 2/3)/2 + 2/3 * 2/2 * 0.2 = 0.3.

An n-gram is one packed integer of 64 bits, the last symbol in its lowest digit, so counting is one
sort and looking up is one binary search. Where the n-grams come from is events.py's work.

Sources: Kneser and Ney 1995, Improved backing-off for m-gram language modeling; Chen and Goodman
1998, An empirical study of smoothing techniques for language modeling, section 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
FALLBACK_DISCOUNT = 0.5  # where no n-gram was counted exactly once, as for bytes in a long text
Discounts = NDArray[np.float64]  # by a count up to 3: 0, D1, D2, D3


@dataclasses.dataclass(frozen=True)
class Level:
    """The counts of one order.

    Attributes:
        keys: the packed n-grams seen, sorted, [N].
        counts: the count of each, a continuation count below the highest order, [N].
        contexts: the contexts seen, the keys without their last symbol, sorted, [C].
        totals: the sum of the counts in each context, [C].
        saved: the sum of the discounts in each context, [C].
        discounts: 0, D1, D2, D3.
    """

    keys: Keys
    counts: NDArray[np.int64]
    contexts: Keys
    totals: NDArray[np.int64]
    saved: NDArray[np.float64]
    discounts: Discounts


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
            saved = _look_up(level.contexts, level.saved, contexts)
            seen = totals > 0
            divisor = np.where(seen, totals, 1)
            kept = (counts - level.discounts[np.minimum(counts, 3)]) / divisor
            handed_down = np.where(seen, saved / divisor, 1.0)
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
    discounts = estimate_discounts(counts)
    saved = np.add.reduceat(discounts[np.minimum(counts, 3)], first)
    return Level(keys, counts, contexts, np.add.reduceat(counts, first), saved, discounts)


def estimate_discounts(counts: NDArray[np.int64]) -> Discounts:
    """0, D1, D2, D3 of the counts of one order."""
    n1, n2, n3, n4 = (int((counts == times).sum()) for times in (1, 2, 3, 4))
    if not n1:
        return np.array([0.0, *[FALLBACK_DISCOUNT] * 3])
    y = n1 / (n1 + 2 * n2)
    three = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]) if n2 and n3 and n4 else None
    # Of odd counts, as of a text made by a rule, an estimate may lie outside of what can be discounted.
    usable = three is not None and bool(np.all((three > 0) & (three <= (1, 2, 3))))
    return np.array([0.0, *three]) if three is not None and usable else np.array([0.0, y, y, y])


def _look_up(table: Keys, values: NDArray[Any], keys: Keys) -> NDArray[Any]:
    """The value of each key, 0 for a key that is not in the sorted table."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[index] == keys, values[index], 0)
