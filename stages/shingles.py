"""A document as a set of shingles: word n-grams, each a 64-bit hash.

The normalised text is what counts: lower-case words joined by one space. "The cat, the CAT!" is "the
cat the cat". With n = 3 its shingles are "the cat the" and "cat the cat"; the Jaccard similarity of
two documents is |A and B| / |A or B| over these sets. A document of fewer than n words is one shingle.

A shingle's hash is a polynomial in the xxh3-64 of its words, mixed: no string is built per shingle.
The normalisation decides what J means, so a change of it gets a new `NORMALISATION` number.
"""

from __future__ import annotations

import re
from typing import NewType

import numpy as np
import numpy.typing as npt
import xxhash

NORMALISATION = 1
WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
Shingles = NewType("Shingles", np.ndarray)
"""Sorted distinct hashes, uint64[n]."""


class _WordHashes(dict[str, int]):
    """xxh3-64 of words, each computed once; forgotten when a million are held."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 1_000_000:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_word_hashes = _WordHashes()


def words_of(text: str) -> list[str]:
    """The words of the normalised text. A text without a word character is a word itself."""
    return WORD.findall(text.lower()) or [text]


def exact_hash(words: list[str]) -> bytes:
    """xxh3-128 of the normalised text: equal for exact duplicates."""
    return xxhash.xxh3_128_digest(" ".join(words).encode())


def shingle_hashes(words: list[str], ngram: int) -> npt.NDArray[np.uint64]:
    """The hash of every shingle in the order of the words, repeats included, for at least one word."""
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))
    width = min(ngram, len(words))
    combined = np.zeros(len(words) - width + 1, np.uint64)
    for start in range(width):
        combined = combined * MULTIPLIER + hashes[start : start + len(combined)]
    return _mixed(combined)


def shingles_of(words: list[str], ngram: int) -> Shingles:
    """The set of shingles of a document with at least one word."""
    return Shingles(np.unique(shingle_hashes(words, ngram)))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of MurmurHash3, a bijection, so that every bit depends on every word."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def jaccard(first: Shingles, second: Shingles) -> float:
    """|A and B| / |A or B|, exact up to collisions of 64-bit hashes."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
