"""How much of a text repeats: kernels over hashes of words, lines and paragraphs.

    a b a b a c    pairs: a b (2), b a (2), a c    the first of the most frequent: a b
    one line / two lines / one line                3 parts, 1 of them repeated, of 8 characters

Texts are compared by 64-bit hashes: the polynomial of their characters, so that the hash of several words in a
row follows from the hashes up to their ends, and mixed before it finds a place in a table. Two different
texts of one document have equal hashes once in 10^19 times (or if somebody made them so).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.clean.english import ALPHABETIC, SYMBOL
from stages.clean.words import Codes, Flags, Places
from stages.compiled import bare_kernel, inline_kernel

BASE = np.uint64(0x9E3779B97F4A7C15)
Hashes = npt.NDArray[np.uint64]
NEW_LINE = 10
POWERS = np.cumprod(np.full(1024, BASE, np.uint64), dtype=np.uint64) * np.uint64(0xF1DE83E19937733D)  # BASE ** index


class Room(NamedTuple):
    """Working arrays for the words of some documents; a kernel that needs larger ones says -1.

    Attributes:
        begins, ends: where each word begins and ends.
        sums: the hash of the words of a document before each.
        grams: the hash of the n-gram that begins at each.
        keys, counts, firsts: a table by hash for one document; a key of 0 is a free slot.
    """

    begins: Places
    ends: Places
    sums: Hashes
    grams: Hashes
    keys: Hashes
    counts: Places
    firsts: Places


@functools.lru_cache(maxsize=2)
def room(n_words: int) -> Room:
    """Working arrays for fewer words than the power of two `n_words`; the same ones again if asked again, because
    fresh memory costs more than what is computed in it."""
    begins, ends = (np.empty(n_words, np.int32) for _ in range(2))
    sums, grams = (np.empty(n_words, np.uint64) for _ in range(2))
    counts, firsts = (np.empty(2 * n_words, np.int32) for _ in range(2))
    return Room(begins, ends, sums, grams, np.empty(2 * n_words, np.uint64), counts, firsts)


def grown(small: Room) -> Room:
    """Twice the room, with the words that were found."""
    large = room(2 * len(small.begins))
    large.begins[: len(small.begins)], large.ends[: len(small.ends)] = small.begins, small.ends
    return large


@inline_kernel
def mixed(value: np.uint64) -> np.uint64:
    """A hash whose every bit depends on every bit; never 0."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) | np.uint64(1 << 63)


@bare_kernel
def power(exponent: int) -> np.uint64:
    """BASE ** exponent, modulo 2^64."""
    if exponent < len(POWERS):
        return POWERS[exponent]
    result, factor = np.uint64(1), np.uint64(BASE)
    while exponent:
        if exponent & 1:
            result *= factor
        factor *= factor
        exponent >>= 1
    return result


@bare_kernel
def table_mask(n_entries: int, room: Room) -> int:
    """Empties a table for so many entries and gives its size less one."""
    size = 16
    while size < 2 * n_entries:
        size *= 2
    for slot in range(size):
        room.keys[slot] = 0
    return size - 1


@bare_kernel
def seen(key: np.uint64, mask: int, keys: Hashes) -> bool:
    """Whether the table holds the key; from now on it does."""
    slot = np.int64(key & np.uint64(mask))
    while keys[slot]:
        if keys[slot] == key:
            return True
        slot = (slot + 1) & mask
    keys[slot] = key
    return False


@bare_kernel
def repeated_parts(codes: Codes, begin: int, end: int, breaks: int, room: Room) -> tuple[int, int, int]:
    """Parts of a text separated by `breaks` line ends or more: all, those that stood before, characters of these."""
    n_parts = 1
    for place in range(begin, end):
        n_parts += codes[place] == NEW_LINE
    if 4 * n_parts > len(room.keys):
        return -1, 0, 0
    mask = table_mask(n_parts, room)
    parts = repeated = characters = 0
    place = begin
    while place <= end:
        value, first, ends = np.uint64(0), place, 0
        while place < end:
            if codes[place] == NEW_LINE:
                ends = 1
                while place + ends < end and codes[place + ends] == NEW_LINE:
                    ends += 1
                if ends >= breaks:
                    break
            value = value * BASE + np.uint64(codes[place])
            place += 1
        parts += 1
        if seen(mixed(value + np.uint64(place - first)), mask, room.keys):
            repeated += 1
            characters += place - first
        if place >= end:
            break
        place += ends
    return parts, repeated, characters


@bare_kernel
def hash_words(
    codes: Codes, flags: Flags, first: int, last: int, stop_words: Hashes, room: Room
) -> tuple[int, int, int, int]:
    """Fills `sums` for the words of a document; counts words that are not all symbols, their characters, words with
    a letter, and how many of `stop_words` (their hashes, at most 64) occur."""
    total = found = np.uint64(0)
    n_plain = plain_characters = n_alphabetic = 0
    for word in range(first, last):
        value = np.uint64(0)
        plain = alphabetic = False
        size = room.ends[word] - room.begins[word]
        for place in range(room.begins[word], room.ends[word]):
            value = value * BASE + np.uint64(codes[place])
            plain |= flags[place] & SYMBOL == 0
            alphabetic |= flags[place] & ALPHABETIC != 0
        room.sums[word] = total
        room.grams[word] = value
        total = total * power(size) + value
        n_plain += plain
        plain_characters += plain * size
        n_alphabetic += alphabetic
        for number in range(len(stop_words)):
            if stop_words[number] == value:
                found |= np.uint64(1) << np.uint64(number)
    room.sums[last] = total
    n_stop_words = 0
    while found:
        n_stop_words += 1
        found &= found - np.uint64(1)
    return n_plain, plain_characters, n_alphabetic, n_stop_words


@inline_kernel
def characters_of(first: int, last: int, room: Room) -> int:
    """The characters of the words from `first` to before `last`."""
    characters = 0
    for word in range(first, last):
        characters += room.ends[word] - room.begins[word]
    return characters


@bare_kernel
def top_ngram(n: int, first: int, last: int, room: Room) -> tuple[int, int]:
    """The characters of the most frequent n-gram, words joined by a space, the first of equals; how often it occurs.

    Call it after hash_words for 2, 3 and 4 in this order: the hash of an n-gram is made from that of one word less.
    """
    positions = last - first - n + 1
    if positions <= 0:
        return 0, 0
    mask = table_mask(positions, room)
    most, top = 0, first
    for word in range(first, first + positions):
        following = word + n - 1
        size = room.ends[following] - room.begins[following]
        value = room.sums[following + 1] - room.sums[following] * power(size)
        key = mixed(room.grams[word] * BASE + value + np.uint64(size))
        room.grams[word] = key
        slot = np.int64(key & np.uint64(mask))
        while room.keys[slot] and room.keys[slot] != key:
            slot = (slot + 1) & mask
        if room.keys[slot] == 0:
            room.keys[slot], room.counts[slot], room.firsts[slot] = key, 0, word
        room.counts[slot] += 1
        count = room.counts[slot]
        if count > most or (count == most and room.firsts[slot] < top):
            most, top = count, room.firsts[slot]
    return characters_of(top, top + n, room) + n - 1, most


@bare_kernel
def repeated_ngrams(n: int, first: int, last: int, room: Room) -> int:
    """Characters of n-grams that stood before; words are joined without a space, and one n-gram at a time counts."""
    positions = last - first - n + 1
    if positions <= 0:
        return 0
    mask = table_mask(positions, room)
    word, characters = first, 0
    size = characters_of(first, first + n, room)
    while word < first + positions:
        value = room.sums[word + n] - room.sums[word] * power(size)
        step = 1
        if seen(mixed(value + np.uint64(size)), mask, room.keys):
            characters += size
            step = n
        for _ in range(step):
            size -= room.ends[word] - room.begins[word]
            if word + n < last:
                size += room.ends[word + n] - room.begins[word + n]
            word += 1
    return characters
