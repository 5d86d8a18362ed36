"""A document as a set of shingles: word n-grams, each a 64-bit hash, made from UTF-8 without a Python object a word.

The normalised text is what counts: words joined by one space. A word is a maximal run of letters, marks,
numbers and underscores in simple lower case; a letter or number of a script without spaces (Chinese, Thai)
is a word by itself, with the marks after it. What a character is stands in stages/unicode.txt, not in
Python's tables, which change with its version.

    "The cat, the CAT! 日本"   is   the cat the cat 日 本

With n = 3 its shingles are "the cat the", "cat the cat", "the cat 日" and "cat 日 本"; the Jaccard similarity of two
documents is |A and B| / |A or B| over these sets. A document of fewer than n words is one shingle, one
without a word is its own text. A shingle's hash is a polynomial in the hashes of its words, rolled from
one to the next, and mixed. The normalisation decides what J means: a change gets another `NORMALISATION`.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from stages.compiled import bare_kernel, inline_kernel, kernel
from stages.unicode import UNICODE_SHA256
from stages.utf8 import Bytes, Offsets
from stages.word_hashes import BLOCK, MULTIPLIER, Hashes, add_words, room_for, word_room

NORMALISATION = 2
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


class Shingled(NamedTuple):
    """Texts as shingles.

    Attributes:
        shingles: the hashes of all texts end to end, in the order of their words, repeats included.
        ends: where the shingles of each text begin, and the last ones end; int64[texts + 1].
        normal: the normalised texts end to end, UTF-8.
        normal_ends: the same for `normal`.
    """

    shingles: Hashes
    ends: Offsets
    normal: Bytes
    normal_ends: Offsets


def normalisation_name() -> str:
    """The version of the normalisation with a hash of the table of characters that it rests on."""
    return f"{NORMALISATION}-{hashlib.sha256(f'{NORMALISATION} {UNICODE_SHA256}'.encode()).hexdigest()[:16]}"


def shingle_texts(data: Bytes, offsets: Offsets, ngram: int) -> Shingled:
    """The shingles of texts given as stages/utf8.py gives them."""
    n_texts, longest = len(offsets) - 1, int(np.diff(offsets).max(initial=0))
    shingles = np.empty(int(offsets[-1]) // 2 + n_texts + 2, np.uint64)  # a word and its end are two bytes or more
    normal = normal_room(offsets)
    ends, normal_ends = np.zeros(n_texts + 1, np.int64), np.zeros(n_texts + 1, np.int64)
    words = word_room(longest)
    _shingle(read_only(data), offsets, room_for(longest), ngram, words, normal, normal_ends, shingles, ends)
    return Shingled(shingles[: ends[-1]], ends, normal[: normal_ends[-1]], normal_ends)


def normal_room(offsets: Offsets) -> Bytes:
    """Room for the normalised texts: lower case may take 3 bytes for 2."""
    n_bytes = int(offsets[-1])
    return np.empty(n_bytes + n_bytes // 2 + 4 * len(offsets) + 32, np.uint8)


def read_only(data: Bytes) -> Bytes:
    """One type for the compiler, whatever the buffer is."""
    data = data.view()
    data.flags.writeable = False
    return data


@inline_kernel
def mixed(value: np.uint64) -> np.uint64:
    """The finaliser of MurmurHash3, a bijection, so that every bit depends on every word."""
    value = (value ^ (value >> np.uint64(33))) * FIRST_FACTOR
    value = (value ^ (value >> np.uint64(33))) * SECOND_FACTOR
    return value ^ (value >> np.uint64(33))


@bare_kernel
def roll(hashes, n_words, ngram, shingles):  # type: ignore[no-untyped-def]
    """Writes the shingles of words with these hashes; gives their number. `shingles` has room for `n_words`.

    Each is computed by itself, in vectors: a sum that rolls from one to the next is less work in a longer chain.
    """
    if n_words <= ngram:
        rolled = np.uint64(0)
        for word in range(n_words):
            rolled = rolled * MULTIPLIER + hashes[word]
        shingles[0] = mixed(rolled)
        return 1
    count = n_words - ngram + 1
    for begin in range(0, count, BLOCK):
        rolled_here = shingles[begin : min(begin + BLOCK, count)]
        size = len(rolled_here)
        for place in range(size):
            rolled_here[place] = np.uint64(0)
        for word in range(ngram):
            words = hashes[begin + word : begin + word + size]
            for place in range(size):
                rolled_here[place] = rolled_here[place] * MULTIPLIER + words[place]
        for place in range(size):
            rolled_here[place] = mixed(rolled_here[place])
    return count


@bare_kernel
def _shingle(data, offsets, room, ngram, hashes, normal, normal_ends, shingles, ends):  # type: ignore[no-untyped-def]
    """Fills all after `hashes`, which has room for the words of the longest text."""
    at = count = 0
    for text in range(len(offsets) - 1):
        at, n_words = add_words(data, offsets[text], offsets[text + 1], room, normal, at, hashes)
        count += roll(hashes, n_words, ngram, shingles[count:])
        normal_ends[text + 1], ends[text + 1] = at, count


def distinct(shingles: Hashes, ends: Offsets) -> tuple[Hashes, Offsets]:
    """The set of each text: its distinct shingles where they occur first, end to end, and where each set begins.

    No shingle of a set is 0, which marks free places in tables: 0 is taken for 1.
    """
    found, found_ends = np.empty(len(shingles), np.uint64), np.zeros(len(ends), np.int64)
    _distinct(shingles, ends, found, found_ends)
    return found[: found_ends[-1]], found_ends


@kernel
def _distinct(shingles, ends, found, found_ends):  # type: ignore[no-untyped-def]
    largest = 0
    for text in range(len(ends) - 1):
        largest = max(largest, ends[text + 1] - ends[text])
    size = 2
    while size < 2 * largest:
        size *= 2
    table = np.zeros(size, np.uint64)
    count = 0
    for text in range(len(ends) - 1):
        size = 2
        while size < 2 * (ends[text + 1] - ends[text]):
            size *= 2
        mask = np.uint64(size - 1)
        table[:size] = 0
        for at in range(ends[text], ends[text + 1]):
            value = max(shingles[at], np.uint64(1))
            place = value & mask
            while table[place] != 0 and table[place] != value:
                place = (place + np.uint64(1)) & mask
            if table[place] == 0:
                table[place] = value
                found[count] = value
                count += 1
        found_ends[text + 1] = count
