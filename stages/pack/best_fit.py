"""Fills rows of T slots with the last pieces of documents, one row after another, as one compiled pass.

A row begins with the longest piece left. Into the space beside it goes, in this order of preference:

    1. a piece that fills it exactly
    2. two pieces that fill it exactly, the two most alike in length first: short pieces fill what nothing else does
    3. the longest piece that fits (alone, this rule is first-fit decreasing)

Example, T = 8: pieces 5, 4, 2, 2, 1. Row 0 = 5 + (2 + 1), because no piece is 3 long; row 1 = 4 + 2.

Only counts of pieces by length decide. They fall and never rise, so a length or a pair that is used up stays so, and
the search for pairs goes on where it stopped for this space: all rows together cost T^2 / 4 steps at most, and some
tens of nanoseconds a piece. What is left of a length is found in a tree of bits, the longest first: bit i of level 0
says that there is a piece of T - i, bit i of a level above that word i below has a bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import inline_kernel, kernel

WORD_BITS = 64
NONE = -1
PAIR_SPACE = 1 << 13  # in more space than this no pairs are looked for, which bounds their search for any T


def share_rows(lengths: npt.NDArray[np.integer], context_length: int) -> tuple[npt.NDArray, npt.NDArray]:
    """The shared rows of the documents' last pieces, their lengths modulo T.

    Returns:
        row_starts, pieces: row i holds the documents pieces[row_starts[i] : row_starts[i + 1]], ascending.
    """
    index: type[np.integer] = np.int32 if len(lengths) < 1 << 31 else np.int64
    levels = _level_starts(context_length + 1)
    row_of = np.empty(len(lengths), index)
    n_rows = _fill_rows(np.ascontiguousarray(lengths), context_length, levels, row_of)
    row_starts = np.zeros(n_rows + 1, index)
    _count_rows(row_of, row_starts)
    pieces = np.empty(int(row_starts[-1]), index)
    _by_row(row_of, row_starts[:-1].copy(), pieces)
    return row_starts, pieces


def _level_starts(n_bits: int) -> npt.NDArray[np.int64]:
    """Where each level of the tree begins in one array of words, and where the last one ends."""
    starts = [0]
    while True:
        n_words = -(-n_bits // WORD_BITS)
        starts.append(starts[-1] + n_words)
        if n_words == 1:
            return np.array(starts, np.int64)
        n_bits = n_words


@kernel
def _fill_rows(lengths, context_length, levels, row_of):  # type: ignore[no-untyped-def]
    """Fills `row_of` with the row of each document's last piece, -1 where it has none; the number of rows."""
    T = context_length
    counts = np.zeros(T + 1, np.int64)
    for document in range(len(lengths)):
        counts[lengths[document] % T] += 1
    left = len(lengths) - counts[0]
    counts[0] = 0
    order = np.empty(left, row_of.dtype)  # documents by the length of their pieces
    places = np.cumsum(counts) - counts
    for document in range(len(lengths)):
        length = lengths[document] % T
        row_of[document] = NONE
        if length:
            order[places[length]] = document
            places[length] += 1
    places -= counts
    words = np.zeros(levels[-1], np.uint64)
    for length in range(1, T):
        if counts[length]:
            _set(words, levels, T - length)
    halves = np.arange(min(T, PAIR_SPACE) + 1) >> 1  # for each space the shorter piece of the next pair to look at
    n_rows, space = 0, 0
    while left:
        length = _next_piece(counts, halves, words, levels, T, space) if space else NONE
        if length == NONE:
            space, n_rows = T, n_rows + 1
            length = _longest_to(words, levels, T, T)
        row_of[order[places[length]]] = n_rows - 1
        places[length] += 1
        space -= length
        left -= 1
        counts[length] -= 1
        if counts[length] == 0:
            _clear(words, levels, T - length)
    return n_rows


@kernel
def _next_piece(counts, halves, words, levels, context_length, space):  # type: ignore[no-untyped-def]
    """The length of the piece to put into a space, or -1: none fits."""
    if counts[space]:
        return space
    if space < len(halves):
        shorter = halves[space]
        while shorter > 0:
            if counts[shorter] and counts[space - shorter] and (2 * shorter != space or counts[shorter] > 1):
                halves[space] = shorter
                return space - shorter
            shorter -= 1
        halves[space] = shorter
    return _longest_to(words, levels, context_length, space)


@inline_kernel
def _longest_to(words, levels, context_length, space):  # type: ignore[no-untyped-def]
    """The length of the longest piece of at most `space`, or -1."""
    bit = _first_from(words, levels, context_length - space)
    return NONE if bit == NONE else context_length - bit


@kernel
def _count_rows(row_of, row_starts):  # type: ignore[no-untyped-def]
    """Turns zeros into where the documents of each row begin when they are listed row by row."""
    for document in range(len(row_of)):
        row_starts[row_of[document] + 1] += 1  # those without a row are counted at 0
    row_starts[0] = 0
    for row in range(1, len(row_starts)):
        row_starts[row] += row_starts[row - 1]


@kernel
def _by_row(row_of, places, pieces):  # type: ignore[no-untyped-def]
    """Writes the documents of each row from `places` on, ascending."""
    for document in range(len(row_of)):
        row = row_of[document]
        if row >= 0:
            pieces[places[row]] = document
            places[row] += 1


@inline_kernel
def _set(words, levels, bit):  # type: ignore[no-untyped-def]
    for level in range(len(levels) - 1):
        words[levels[level] + (bit >> 6)] |= np.uint64(1) << np.uint64(bit & 63)
        bit >>= 6


@inline_kernel
def _clear(words, levels, bit):  # type: ignore[no-untyped-def]
    for level in range(len(levels) - 1):
        words[levels[level] + (bit >> 6)] &= ~(np.uint64(1) << np.uint64(bit & 63))
        if words[levels[level] + (bit >> 6)]:
            break
        bit >>= 6


@kernel
def _first_from(words, levels, bit):  # type: ignore[no-untyped-def]
    """The first bit that is set, from `bit` on, or -1: up until a word has one to the right, then down."""
    n_levels = len(levels) - 1
    for level in range(n_levels):
        place = levels[level] + (bit >> 6)
        if place >= levels[level + 1]:
            return NONE
        word = words[place] >> np.uint64(bit & 63)
        if word:
            bit += _trailing_zeros(word)
            for lower in range(level - 1, -1, -1):
                bit = (bit << 6) + _trailing_zeros(words[levels[lower] + bit])
            return bit
        bit = (bit >> 6) + 1
    return NONE


@inline_kernel
def _trailing_zeros(word):  # type: ignore[no-untyped-def]
    count = 0
    for width in (32, 16, 8, 4, 2, 1):
        if word & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)) == 0:
            word >>= np.uint64(width)
            count += width
    return count
