"""Finds the words of texts as spaCy's English tokenizer does, on which the usual quality filters count.

    The cat can't.   ->   The | cat | ca | n't | .

A run of characters between white space is taken apart by runs.py. Most runs stand in the texts many times: what was
found for one is kept by its hash for the next (`Memo`), and a table of first character, length and last character
says at once that a run is no listed word.

A word is a place in the texts (code_points.py), a hash, and what kinds of characters it has (`Words`): the characters
of most words are looked at once.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.clean.code_points import Codes, Flags, Places
from stages.clean.english import ALPHABETIC, MOST_PARTS, PART_BITS, SPACE, SYMBOL, English, may_be_listed
from stages.clean.runs import put_parts, split_run
from stages.compiled import bare_kernel
from stages.utf8 import Offsets

Rules = npt.NDArray[np.int8]
Hashes = npt.NDArray[np.uint64]
Memo = npt.NDArray[np.uint64]
"""[slots, 4]: runs without white space that were taken apart before, because most stand in the texts many times. Of
each the hash, which decides the slot (0: free); another hash, so that what was found for one run is never taken for
that of another; and the lengths of its words, PART_BITS a word, the first word lowest."""
BASE = np.uint64(0x9E3779B97F4A7C15)
LONGEST_PART = (1 << PART_BITS) - 1
MEMO_SLOTS, MEMO_PRIME = 1 << 15, np.uint64(0xBF58476D1CE4E5B9)
KEY, CHECK, LENGTHS = range(3)  # columns of a memo
PLAIN, LETTERS = 1, 2  # kinds of words: with a character that is no symbol, with one that is alphabetic
BEHIND = np.iinfo(np.int32).max  # where the word after the last one begins
PASSED = -1  # the rule of a text that none has dropped


class Words(NamedTuple):
    """The words of texts, end to end.

    Attributes:
        begins, ends: where each begins and ends among the code points.
        hashes: the polynomial of its characters, in BASE.
        kinds: PLAIN | LETTERS.
    """

    begins: Places
    ends: Places
    hashes: Hashes
    kinds: npt.NDArray[np.uint8]


class Texts(NamedTuple):
    """Texts end to end.

    Attributes:
        codes, flags: their code points, and the flags of each.
        places: where each text begins, and the last one ends.
        firsts: the first word of each, and how many words there are.
        words: their words; one more, far behind, follows the last.
    """

    codes: Codes
    flags: Flags
    places: Offsets
    firsts: Offsets
    words: Words


@bare_kernel
def packed_parts(begins: Places, ends: Places, first: int, last: int) -> int:
    """The lengths of words, PART_BITS each, the first lowest; 0: they are too many or too long."""
    parts = 0
    if last - first > MOST_PARTS:
        return 0
    for word in range(last - 1, first - 1, -1):
        size = ends[word] - begins[word]
        if size > LONGEST_PART:
            return 0
        parts = parts << PART_BITS | size
    return parts


@bare_kernel
def describe(codes: Codes, flags: Flags, words: Words, first: int, last: int) -> None:
    """Hash and kind of words whose places are known."""
    for word in range(first, last):
        value, kinds = np.uint64(0), 0
        for place in range(words.begins[word], words.ends[word]):
            value = value * BASE + np.uint64(codes[place])
            kinds |= (PLAIN if flags[place] & SYMBOL == 0 else 0) | (LETTERS if flags[place] & ALPHABETIC else 0)
        words.hashes[word], words.kinds[word] = value, kinds


@bare_kernel
def find_words(
    codes: Codes, flags: Flags, begin: int, end: int, english: English, memo: Memo, words: Words, count: int
) -> int:
    """Writes the words of a text from `count` on; how many all are then, or -1: no room."""
    begins, ends, hashes, kinds = words
    place = begin
    while place < end:
        first, others, value = place, 0, np.uint64(0)
        while place < end and not flags[place] & SPACE:  # to the end of a run without white space
            code = codes[place]
            others += not 97 <= code | 32 <= 122
            value = value * BASE + np.uint64(code)
            place += 1
        size = place - first
        if size == 0:
            place += 1
            continue
        if count + 3 * size >= len(begins):
            return -1
        if others == 0 and not may_be_listed(codes, first, place, english.gates):
            begins[count], ends[count], hashes[count], kinds[count] = first, place, value, PLAIN | LETTERS
            count += 1
            continue
        chunk, check = count, np.uint64(size)
        for within in range(first, place):
            check = check * MEMO_PRIME + np.uint64(codes[within])
        slot = np.int64(value * MEMO_PRIME >> np.uint64(40)) & (len(memo) - 1)
        if memo[slot, KEY] == value and memo[slot, CHECK] == check:
            count = put_parts(first, np.int64(memo[slot, LENGTHS]), begins, ends, count)
        else:
            count = split_run(codes, flags, first, place, english, begins, ends, count)
            parts = packed_parts(begins, ends, chunk, count)
            if parts:
                memo[slot, KEY], memo[slot, CHECK], memo[slot, LENGTHS] = value, check, parts
        describe(codes, flags, words, chunk, count)
    return count


@bare_kernel
def words_of_texts(texts: Texts, english: English, memo: Memo, rules: Rules) -> bool:
    """Finds the words of all texts that no rule dropped. False: no room."""
    places, words = texts.places, texts.words
    count = np.int64(0)  # a plain 0 is a type of its own to numba, which would compile all that takes it twice
    for text in range(len(places) - 1):
        texts.firsts[text] = count
        if rules[text] == PASSED:
            count = find_words(texts.codes, texts.flags, places[text], places[text + 1], english, memo, words, count)
            if count < 0 or count + 2 >= len(words.begins):
                return False
    texts.firsts[len(places) - 1] = count
    words.begins[count] = BEHIND
    return True


def empty_memo() -> Memo:
    """For one `English`."""
    return np.zeros((MEMO_SLOTS, 4), np.uint64)


@functools.lru_cache(maxsize=1)
def known_runs() -> Memo:
    """What this process has found so far."""
    return empty_memo()


def room_for_words(n_words: int) -> Words:
    begins, ends = (np.empty(n_words, np.int32) for _ in range(2))
    return Words(begins, ends, np.empty(n_words, np.uint64), np.empty(n_words, np.uint8))


def split_texts(texts: list[str], english: English) -> list[list[str]]:
    """The words of texts: what the kernel finds, for tests and tables."""
    whole = "".join(texts)
    codes = np.array([ord(character) for character in whole], np.int32)
    places = np.cumsum([0, *map(len, texts)])
    words, firsts = room_for_words(3 * len(codes) + 64), np.empty(len(texts) + 1, np.int64)
    rules = np.full(len(texts), PASSED, np.int8)
    words_of_texts(Texts(codes, english.classes[codes], places, firsts, words), english, empty_memo(), rules)
    return [
        [whole[words.begins[word] : words.ends[word]] for word in range(first, last)]
        for first, last in pairwise(firsts.tolist())
    ]
