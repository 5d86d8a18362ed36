"""How varied what the model writes is, and how much of it stands in its training text.

    distinct_N       different n-grams / n-grams, over all texts together (Li et al., 2016): 1 if none comes twice
    repetition       share of 4-grams that stood before in the same text: 0 if it never repeats itself
    length           mean tokens
    finished         share of texts that the model ended itself
    longest_match    tokens of the longest piece of any text that stands in the training rows
    memorised        share of tokens within pieces of MEMORISED tokens or more that stand there

Example: the text a b c a b c d has 2-grams ab bc ca ab bc cd: 4 of 6 are different, distinct_2 = 0.667.

The longest matches come from one walk over the rows that the model had read: tokens whose n-gram stands in a
text are kept, then those of them whose (n+1)-gram does, until none is left. Of ordinary text few survive the
first steps, so the walk is about as long as reading the rows, in the memory of one block of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.tokens import TokenRows

IntArray = NDArray[np.int64]
REPEATED_NGRAM = 4
MEMORISED = 16
ROWS_AT_ONCE = 1024
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def quality(texts: Sequence[Sequence[int]], finished: Sequence[bool], matches: Sequence[IntArray]) -> dict[str, float]:
    """The figures of the docstring for these texts, tokens each, by their names in metrics.json."""
    figures: dict[str, float] = {}
    for n in (1, 2, 3):
        grams = [gram for text in texts for gram in ngrams(text, n)]
        figures[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    fours = [ngrams(text, REPEATED_NGRAM) for text in texts]
    figures["repetition"] = 1 - sum(len(set(grams)) for grams in fours) / max(1, sum(map(len, fours)))
    if not any(fours):
        figures["repetition"] = 0.0
    n_tokens = sum(map(len, texts))
    figures["length"] = n_tokens / max(1, len(texts))
    figures["finished"] = sum(finished) / max(1, len(finished))
    figures["longest_match"] = float(max((int(match.max(initial=0)) for match in matches), default=0))
    figures["memorised"] = sum(int(covered(match).sum()) for match in matches) / max(1, n_tokens)
    return {f"generated_{name}": value for name, value in figures.items()}


def ngrams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def covered(match: IntArray) -> NDArray[np.bool_]:
    """Which tokens lie in a match of MEMORISED or more; `match` has the length of the longest from each token on."""
    inside = np.zeros(len(match) + 1, np.int64)
    for start in np.flatnonzero(match >= MEMORISED):
        inside[start] += 1
        inside[start + match[start]] -= 1
    return inside[:-1].cumsum() > 0


def longest_matches(texts: Sequence[Sequence[int]], rows: TokenRows, row_ids: IntArray) -> list[IntArray]:
    """For each token of each text: how many tokens from it on stand in one segment of these rows.

    N-grams are compared by 64-bit hashes: a false match has a chance of about one in 10^9 for 10^7 tokens.
    """
    found = [np.zeros(len(text), np.int64) for text in texts]
    tables = _Tables(texts)
    for first in range(0, len(row_ids), ROWS_AT_ONCE):
        batch = rows.batch(row_ids[first : first + ROWS_AT_ONCE])
        inputs, segments = batch.inputs.ravel(), batch.segments.ravel()
        # One number per segment of all these rows, none of them shared by two rows.
        owner = segments + np.repeat(np.arange(len(batch.segments)), batch.segments.shape[1]) * (segments.max() + 2)
        places = np.flatnonzero(segments >= 0)
        hashes = np.zeros(len(places), np.uint64)
        for n in range(1, tables.longest + 1):
            ends = places + n - 1
            inside = ends < len(inputs)
            inside[inside] = owner[ends[inside]] == owner[places[inside]]
            places, hashes = places[inside], hashes[inside]
            hashes = _extended(hashes, inputs[places + n - 1])
            which, hits = tables.look_up(n, hashes)
            for text, start in hits:
                found[text][start] = max(found[text][start], n)
            places, hashes = places[which], hashes[which]
            if not len(places):
                break
    return found


def _extended(hashes: NDArray[np.uint64], tokens: NDArray[np.integer]) -> NDArray[np.uint64]:
    mixed = (hashes ^ (hashes >> np.uint64(29))) * MULTIPLIER
    return mixed + (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)


class _Tables:
    """The n-grams of all texts, by n, as sorted hashes and where each stands; made when they are asked for."""

    def __init__(self, texts: Sequence[Sequence[int]]):
        self.texts = [np.array(text, np.int64) for text in texts]
        self.longest = max(map(len, texts), default=0)
        self.hashes = [np.zeros(len(text), np.uint64) for text in texts]
        self.tables: list[tuple[NDArray[np.uint64], list[list[tuple[int, int]]]]] = []

    def look_up(self, n: int, hashes: NDArray[np.uint64]) -> tuple[IntArray, list[tuple[int, int]]]:
        """Which of these hashes are n-grams of a text, and where those n-grams stand: text and token."""
        while len(self.tables) < n:
            self._grow()
        table, stands = self.tables[n - 1]
        if not len(table) or not len(hashes):
            return np.zeros(0, np.int64), []
        place = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
        which = np.flatnonzero(table[place] == hashes)
        return which, [stand for number in np.unique(place[which]) for stand in stands[number]]

    def _grow(self) -> None:
        n = len(self.tables) + 1
        stands: dict[int, list[tuple[int, int]]] = {}
        for number, text in enumerate(self.texts):
            starts = max(0, len(text) - n + 1)
            self.hashes[number] = _extended(self.hashes[number][:starts], text[n - 1 :])
            for start, value in enumerate(self.hashes[number].tolist()):
                stands.setdefault(value, []).append((number, start))
        keys = sorted(stands)
        self.tables.append((np.array(keys, np.uint64), [stands[key] for key in keys]))
