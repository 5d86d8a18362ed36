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

from stages.compiled import bare_kernel, inline_kernel, kernel
from stages.eight_bytes import HIGH_BITS, bytes_set, count_ones, first_bytes, load, store, trailing_zeros
from stages.unicode import LETTER, LONE, MARK, NUMBER, UNICODE_SHA256, tables
from stages.utf8 import Bytes, Offsets, decode

NORMALISATION = 2
WORD = LETTER | MARK | NUMBER
BLOCK = 4096
ROOM = 128
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
    shingles = np.empty(n_bytes // 2 + n_texts + 2, np.uint64)  # a word and its end are two bytes or more
    normal = np.empty(n_bytes + n_bytes // 2 + 4 * n_texts + 32, np.uint8)  # lower case may take 3 bytes for 2
    ends, normal_ends = np.zeros(n_texts + 1, np.int64), np.zeros(n_texts + 1, np.int64)
    classes, lower = tables()
    mapped = np.empty(int(np.diff(offsets).max(initial=0)) + 2 * ROOM, np.uint8)
    edges = np.empty(BLOCK + 8, np.int64)
    _shingle(data, offsets, classes, lower, ngram, mapped, edges, normal, normal_ends, shingles, ends)
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


@bare_kernel
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


@bare_kernel
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


@bare_kernel
def _find_edges(mapped, begin, end, edges, count):  # type: ignore[no-untyped-def]
    """Adds to edges[count:] where runs of bytes that are not 0 begin and end, in turn; gives the new count.

    64 bytes at a time: a bit that differs from the one before it is an edge. A run that goes on beyond `end` has no
    end yet.
    """
    inside = np.uint64(count & 1)
    for block in range(begin, end, 64):
        bits = bytes_set(mapped, block)
        found = bits ^ (bits << np.uint64(1) | inside)
        inside = bits >> np.uint64(63)
        n_found = np.int64(count_ones(found))
        for at in range(count, count + n_found, 4):  # four at a time: how many there are, nothing could predict
            for k in range(4):
                edges[at + k] = block + np.int64(trailing_zeros(found))
                found &= found - np.uint64(1)
        count += n_found
    return count


@bare_kernel
def _add_ascii_runs(mapped, edges, edge, n_edges, normal, at, hashes, count):  # type: ignore[no-untyped-def]
    """Adds the runs from edges[edge] on as words, up to the first that is not all ASCII; gives where it stopped.

    Few words have more than 16 bytes: shorter ones take no branch, which nothing could predict. Without a call in the
    loop all it needs stays in registers.
    """
    while edge + 1 < n_edges:
        begin = edges[edge]
        n_bytes = edges[edge + 1] - begin
        packed, more = load(mapped, begin), load(mapped, begin + 8)
        store(normal, at, packed)
        store(normal, at + 8, more)
        first, rest = first_bytes(packed, min(n_bytes, 8)), first_bytes(more, min(max(n_bytes - 8, 0), 8))
        seen = first | rest
        once = _absorbed(SEED, first)
        state = _absorbed(once, rest) if n_bytes > 8 else once
        if n_bytes > 16:
            for place in range(16, n_bytes, 8):
                packed = load(mapped, begin + place)
                store(normal, at + place, packed)
                packed = first_bytes(packed, min(n_bytes - place, 8))
                seen |= packed
                state = _absorbed(state, packed)
        if seen & HIGH_BITS != 0:
            break
        hashes[count] = _finished(state, n_bytes)
        count += 1
        at += n_bytes
        normal[at] = 32
        at += 1
        edge += 2
    return edge, at, count


@bare_kernel
def _add_other_run(data, begin, end, classes, lower, normal, at, hashes, count):  # type: ignore[no-untyped-def]
    """Adds the words of data[begin:end], which is not all ASCII: none, one or more; gives the new `at` and `count`."""
    place = begin
    while place < end:
        place, stop = _copy_word(data, place, end, classes, lower, normal, at)
        if stop > at:
            hashes[count] = _hash_bytes(normal, at, stop)
            count += 1
            normal[stop] = 32
            at = stop + 1
    return at, count


@bare_kernel
def _roll(hashes, begin, end, ngram):  # type: ignore[no-untyped-def]
    """Puts the shingles of the words hashes[begin + 1 : end] in their place, from hashes[begin] on; gives their end."""
    highest, rolled = np.uint64(1), np.uint64(0)
    for _ in range(ngram):
        highest *= MULTIPLIER
    first = min(begin + 1 + ngram, end)
    for place in range(begin + 1, first):
        rolled = rolled * MULTIPLIER + hashes[place]
    hashes[begin] = mixed(rolled)
    for place in range(first, end):
        rolled = rolled * MULTIPLIER + (hashes[place] - hashes[place - ngram] * highest)
        hashes[place - ngram] = mixed(rolled)
    return begin + 1 + max(end - first, 0)


@bare_kernel
def _shingle(data, offsets, classes, lower, ngram, mapped, edges, normal, normal_ends, shingles, ends):  # type: ignore[no-untyped-def]
    """Fills all after `edges`. `mapped` has room for the longest text, `edges` for those of a block.

    The hashes of a text's words stand where its shingles then do, one place further on.
    """
    at = count = 0
    for text in range(len(offsets) - 1):
        begin, n_bytes = offsets[text], offsets[text + 1] - offsets[text]
        _map_ascii(data[begin : begin + n_bytes], mapped)
        mapped[n_bytes : n_bytes + ROOM] = 0
        first, last = at, count + 1
        n_edges = 0
        for block in range(0, n_bytes + 1, BLOCK):  # the byte after the text ends its last run
            n_edges = _find_edges(mapped, block, min(block + BLOCK, n_bytes + 1), edges, n_edges)
            edge, at, last = _add_ascii_runs(mapped, edges, 0, n_edges, normal, at, shingles, last)
            while edge + 1 < n_edges:
                run, end = begin + edges[edge], begin + edges[edge + 1]
                at, last = _add_other_run(data, run, end, classes, lower, normal, at, shingles, last)
                edge, at, last = _add_ascii_runs(mapped, edges, edge + 2, n_edges, normal, at, shingles, last)
            edges[0] = edges[n_edges - 1]  # of a run that has no end yet
            n_edges &= 1
        if last > count + 1:
            at -= 1  # no space after the last word
        else:
            for place in range(begin, begin + n_bytes):
                normal[at] = data[place]
                at += 1
            shingles[last] = _hash_bytes(normal, first, at)
            last += 1
        count = _roll(shingles, count, last, ngram)
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
