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
import numpy.typing as npt

from stages.compiled import inline_kernel, kernel
from stages.eight_bytes import first_bytes, letters_before_stop, load, store, zeros_before_byte
from stages.unicode import LETTER, LONE, MARK, NUMBER, UNICODE_SHA256, tables
from stages.utf8 import Bytes, Offsets, decode

NORMALISATION = 2
WORD = LETTER | MARK | NUMBER
SEED = np.uint64(0x243F6A8885A308D3)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
Hashes = npt.NDArray[np.uint64]


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
    n_texts, n_bytes = len(offsets) - 1, int(offsets[-1])
    data = data.view()
    data.flags.writeable = False  # one type for the compiler, whatever the buffer is
    shingles = np.empty(n_bytes // 2 + n_texts + 1, np.uint64)  # a word and its end are two bytes or more
    normal = np.empty(n_bytes + n_bytes // 2 + 4 * n_texts + 32, np.uint8)  # lower case may take 3 bytes for 2
    ends, normal_ends = np.zeros(n_texts + 1, np.int64), np.zeros(n_texts + 1, np.int64)
    classes, lower = tables()
    _shingle(data, offsets, classes, lower, ngram, normal, normal_ends, shingles, ends)
    return Shingled(shingles[: ends[-1]], ends, normal[: normal_ends[-1]], normal_ends)


@inline_kernel
def mixed(value: np.uint64) -> np.uint64:
    """The finaliser of MurmurHash3, a bijection, so that every bit depends on every word."""
    value = (value ^ (value >> np.uint64(33))) * FIRST_FACTOR
    value = (value ^ (value >> np.uint64(33))) * SECOND_FACTOR
    return value ^ (value >> np.uint64(33))


@inline_kernel
def _absorbed(state: np.uint64, packed: np.uint64) -> np.uint64:
    """The state of a word's hash after up to 8 more of its bytes."""
    state = (state ^ packed) * MULTIPLIER
    return state ^ (state >> np.uint64(32))


@inline_kernel
def _finished(state: np.uint64, n_bytes: int) -> np.uint64:
    return state ^ (np.uint64(n_bytes) * SECOND_FACTOR)


@kernel
def _hash_bytes(data, begin, end):  # type: ignore[no-untyped-def]
    """The hash of a word that stands at data[begin:end], with 8 bytes of room after it."""
    state = SEED
    for place in range(begin, end, 8):
        state = _absorbed(state, first_bytes(load(data, place), min(8, end - place)))
    return _finished(state, end - begin)


@inline_kernel
def _encode(code: np.int32, out: Bytes, at: int) -> int:
    """Writes a code point of 0x80 or more as UTF-8, and gives the number of its bytes."""
    if code < 0x800:
        out[at] = 0xC0 | (code >> 6)
        out[at + 1] = 0x80 | (code & 0x3F)
        return 2
    if code < 0x10000:
        out[at] = 0xE0 | (code >> 12)
        out[at + 1] = 0x80 | ((code >> 6) & 0x3F)
        out[at + 2] = 0x80 | (code & 0x3F)
        return 3
    out[at] = 0xF0 | (code >> 18)
    out[at + 1] = 0x80 | ((code >> 12) & 0x3F)
    out[at + 2] = 0x80 | ((code >> 6) & 0x3F)
    out[at + 3] = 0x80 | (code & 0x3F)
    return 4


@inline_kernel
def _map_ascii(data, mapped):  # type: ignore[no-untyped-def]
    """Of each byte: ASCII that stands in words its lower case, other ASCII 0, any other byte itself; 32 at a time."""
    for place in range(len(data)):
        byte = data[place]
        lower = np.uint8(byte | 0x20) if np.uint8(byte - np.uint8(0x41)) < np.uint8(26) else byte
        is_letter = np.uint8(lower - np.uint8(0x61)) < np.uint8(26)
        is_other = (
            (np.uint8(byte - np.uint8(0x30)) < np.uint8(10)) | (byte == np.uint8(0x5F)) | (byte >= np.uint8(0x80))
        )
        mapped[place] = lower if is_letter | is_other else np.uint8(0)


@kernel
def _copy_word(data, place, end, classes, lower, normal, at):  # type: ignore[no-untyped-def]
    """Copies the word that begins at `place` to normal[at:], if one does; for any characters.

    Gives the place after it (or after what is no word) and where its copy ends.
    """
    first, width = at, 1
    lone = False
    while place < end:
        code, width = decode(data, place)
        flags = classes[code]
        if flags & WORD == 0 and code != 0x5F:
            break
        begins = flags & LONE != 0 and flags & (LETTER | NUMBER) != 0
        if at > first and (begins or (lone and flags & MARK == 0)):
            break
        lone = lone or begins
        code = lower[code]
        if code < 0x80:
            normal[at] = code
            at += 1
        else:
            at += _encode(code, normal, at)
        place += width
    return place + width if at == first else place, at


@kernel
def _shingle(data, offsets, classes, lower, ngram, normal, normal_ends, shingles, ends):  # type: ignore[no-untyped-def]
    highest = np.uint64(1)
    for _ in range(ngram):
        highest *= MULTIPLIER
    window = np.zeros(ngram, np.uint64)  # the hashes of the last words
    longest = 0
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    mapped = np.empty(longest + 32, np.uint8)  # a text in which what is no ASCII word is 0, or 0x80 and above
    at = count = 0
    for text in range(len(offsets) - 1):
        begin, n_bytes = offsets[text], offsets[text + 1] - offsets[text]
        _map_ascii(data[begin : begin + n_bytes], mapped)
        mapped[n_bytes : n_bytes + 32] = 0
        n_words = slot = place = 0
        rolled = np.uint64(0)
        while place < n_bytes:
            skipped = zeros_before_byte(load(mapped, place))
            place += skipped
            if skipped == 8 or place >= n_bytes:
                continue
            # Sixteen bytes at a time and no branch on where the word ends, which nothing could predict.
            first, state, stop = at, SEED, 16
            while stop == 16:
                packed, more = load(mapped, place), load(mapped, place + 8)
                store(normal, at, packed)
                store(normal, at + 8, more)
                stop = letters_before_stop(packed)
                rest = letters_before_stop(more) if stop == 8 else 0
                once = _absorbed(state, first_bytes(packed, stop))
                twice = _absorbed(once, first_bytes(more, rest))
                once = once if stop > 0 else state
                state = twice if rest > 0 else once
                stop += rest
                at += stop
                place += stop
            if mapped[place] == 0:
                value = _finished(state, at - first)
            else:
                place -= at - first
                after, at = _copy_word(data, begin + place, begin + n_bytes, classes, lower, normal, first)
                place = after - begin
                if at == first:
                    continue
                value = _hash_bytes(normal, first, at)
            normal[at] = 32
            at += 1
            rolled = rolled * MULTIPLIER + value
            if n_words >= ngram:
                rolled -= window[slot] * highest
            window[slot] = value
            slot = 0 if slot + 1 == ngram else slot + 1
            n_words += 1
            if n_words >= ngram:
                shingles[count] = mixed(rolled)
                count += 1
        if n_words == 0:
            first = at
            for place in range(n_bytes):
                normal[at] = data[begin + place]
                at += 1
            rolled = _hash_bytes(normal, first, at)
        else:
            at -= 1  # no space after the last word
        if n_words < ngram:
            shingles[count] = mixed(rolled)
            count += 1
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
