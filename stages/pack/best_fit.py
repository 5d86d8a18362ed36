"""Best-fit decreasing as one compiled pass: the last pieces of documents share rows of T slots.

A row's remaining space is a number from 0 to T, so the open rows hang in T + 1 stacks, and the fullest
row with room for a piece lies in the first stack, from the piece's length on, that is not empty. That
stack is found in a tree of bits: bit i of level 0 says that stack i holds a row, bit i of a level
above that word i below has a bit. With T = 2,048 that is two levels, so a document costs some tens of
nanoseconds whatever the lengths. Example, T = 8: pieces 5, 4, 3 open row 0 (space 3) and row 1 (space
4); the 3 asks for the first stack from 3 on, finds row 0, and fills it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import inline_kernel, kernel

WORD_BITS = 64
NONE = -1


def share_rows(lengths: npt.NDArray[np.integer], context_length: int) -> tuple[npt.NDArray, npt.NDArray]:
    """The shared rows of the documents' last pieces, their lengths modulo T.

    Returns:
        row_starts, pieces: row i holds the documents pieces[row_starts[i] : row_starts[i + 1]], ascending.
    """
    index: type[np.integer] = np.int32 if len(lengths) < 1 << 31 else np.int64
    levels = _level_starts(context_length + 1)
    row_of = np.empty(len(lengths), index)
    n_rows = _best_fit(np.ascontiguousarray(lengths), context_length, levels, row_of)
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
def _best_fit(lengths, context_length, levels, row_of):  # type: ignore[no-untyped-def]
    """Fills `row_of` with the row of each document's last piece, -1 where it has none; the number of rows."""
    T = context_length
    n_documents = len(lengths)
    places = np.zeros(T + 1, np.int64)  # where pieces of a length begin among all, longest first
    for document in range(n_documents):
        places[lengths[document] % T] += 1
    total = n_documents - places[0]
    seen = np.int64(0)
    for length in range(T - 1, 0, -1):
        seen += places[length]
        places[length] = seen - places[length]
    order = np.empty(total, row_of.dtype)
    for document in range(n_documents):
        length = lengths[document] % T
        row_of[document] = NONE
        if length:
            order[places[length]] = document
            places[length] += 1
    words = np.zeros(levels[-1], np.uint64)
    tops = np.full(T + 1, NONE, np.int64)  # the top row of each stack
    below = np.empty(total, row_of.dtype)  # the row under each in its stack
    n_rows = 0
    for document in order:
        length = lengths[document] % T
        space = _first_from(words, levels, length)
        if space == NONE:
            row, space, n_rows = n_rows, T, n_rows + 1
        else:
            row = tops[space]
            tops[space] = below[row]
            if tops[space] == NONE:
                _clear(words, levels, space)
        row_of[document] = row
        left = space - length
        if left:
            if tops[left] == NONE:
                _set(words, levels, left)
            below[row] = tops[left]
            tops[left] = row
    return n_rows


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
