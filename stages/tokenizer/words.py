"""Counts distinct pre-tokens in a table of bounded size, for compiled kernels.

A slot (stages/byte_keys.py) holds the number of the word in the low half of column 2 and its count, of
64 bits, in column 3; the words themselves stand end to end in `keys`. Whoever fills the table takes the
words out when it is full, in parts by a hash of their bytes, so that equal words always meet in one part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.byte_keys import LOW_HALF, Slots, Words, any_key_of, key_of, mixed, slot_of
from stages.compiled import inline_kernel, kernel
from stages.pretokens import pretoken_end
from stages.unicode import Classes
from stages.utf8 import Bytes, Offsets

Numbers = npt.NDArray[np.int64]

N_WORDS, N_KEYS = range(2)


class Table(NamedTuple):
    """Words and their counts; `starts[n]` is where word n begins in `keys`, and `used` how much is in use."""

    slots: Slots
    keys: Bytes
    starts: Offsets
    used: Numbers


class Counted(NamedTuple):
    """Distinct words end to end, and how often each occurs."""

    data: Bytes
    offsets: Offsets
    counts: Numbers


def new_table(n_slots: int, key_bytes: int) -> Table:
    """An empty table for half as many words as slots, a power of two, that take so many bytes together."""
    starts = np.zeros(n_slots // 2 + 2, np.int64)
    return Table(np.zeros((n_slots, 4), np.int64), np.empty(key_bytes, np.uint8), starts, np.zeros(2, np.int64))


@inline_kernel
def add(table: Table, data: Bytes, start: int, end: int, first: int, second: int, count: int) -> bool:
    """Adds to the count of the word data[start:end]; False if it is new and there is no room."""
    slots, keys, starts, used = table.slots, table.keys, table.starts, table.used
    slot = slot_of(slots, keys, data, start, end, first, second)
    if slots[slot, 1] == 0:
        key_start, length = used[N_KEYS], end - start
        if 2 * used[N_WORDS] >= len(slots) or key_start + length > len(keys):
            return False
        for place in range(length):
            keys[key_start + place] = data[start + place]
        slots[slot, 0], slots[slot, 1], slots[slot, 2] = first, second, key_start << 32 | used[N_WORDS]
        used[N_KEYS] += length
        used[N_WORDS] += 1
        starts[used[N_WORDS]] = used[N_KEYS]
    slots[slot, 3] += count
    return True


@kernel
def count_pretokens(
    data: Bytes,
    words: Words,
    offsets: Offsets,
    classes: Classes,
    style: int,
    max_digits: int,
    table: Table,
    at: Numbers,
) -> bool:
    """Counts the pre-tokens of texts.

    Args:
        data, words: the bytes of all texts, not to be written to, and `words_of` them.
        at: the text and the place to begin with; becomes those to go on with, after False.

    Returns:
        whether the end was reached, before the table was full.
    """
    for text in range(at[0], len(offsets) - 1):
        place, end = max(offsets[text], at[1]), offsets[text + 1]
        while place < end:
            after = pretoken_end(data, place, end, classes, style, max_digits)
            first, second = key_of(data, words, place, after)
            if not add(table, data, place, after, first, second, 1):
                at[0], at[1] = text, place
                return False
            place = after
    return True


@kernel
def add_counted(data: Bytes, offsets: Offsets, counts: Numbers, table: Table) -> None:
    """Adds words that are counted already; there must be room."""
    for number in range(len(counts)):
        start, end = offsets[number], offsets[number + 1]
        first, second = any_key_of(data, start, end)
        add(table, data, start, end, first, second, counts[number])


@kernel
def counts_of(table: Table) -> Numbers:
    """The count of each word, by its number."""
    counts = np.empty(table.used[N_WORDS], np.int64)
    for slot in range(len(table.slots)):
        if table.slots[slot, 1] != 0:
            counts[table.slots[slot, 2] & LOW_HALF] = table.slots[slot, 3]
    return counts


@kernel
def part_of(table: Table, n_parts: int) -> Numbers:
    """The part to which each word belongs, by its number. `n_parts` is a power of two."""
    parts = np.empty(table.used[N_WORDS], np.int64)
    for slot in range(len(table.slots)):
        if table.slots[slot, 1] != 0:
            key = mixed(table.slots[slot, 0] ^ mixed(table.slots[slot, 1]))
            parts[table.slots[slot, 2] & LOW_HALF] = (key >> 40) & (n_parts - 1)
    return parts


@kernel
def move_slots(old: Slots, new: Slots) -> None:
    """Enters all words of a table into the free slots of a larger one."""
    mask = len(new) - 1
    for slot in range(len(old)):
        if old[slot, 1] != 0:
            place = mixed(old[slot, 0] ^ mixed(old[slot, 1])) & mask
            while new[place, 1] != 0:
                place = (place + 1) & mask
            for column in range(4):
                new[place, column] = old[slot, column]


def with_room(table: Table, n_words: int, n_bytes: int) -> Table:
    """The table, or a larger one with its content, that has room for so many more."""
    slots, keys, starts, used = table
    if 2 * (used[N_WORDS] + n_words) >= len(slots):
        slots = np.zeros((1 << (4 * int(used[N_WORDS] + n_words)).bit_length(), 4), np.int64)
        move_slots(table.slots, slots)
        starts = np.zeros(len(slots) // 2 + 2, np.int64)
        starts[: len(table.starts)] = table.starts
    if used[N_KEYS] + n_bytes > len(keys):
        keys = np.empty(int(1.5 * (used[N_KEYS] + n_bytes)), np.uint8)
        keys[: used[N_KEYS]] = table.keys[: used[N_KEYS]]
    return Table(slots, keys, starts, used)


def empty(table: Table) -> None:
    table.slots[:] = 0
    table.used[:] = 0
