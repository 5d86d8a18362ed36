"""Encodes texts with a table of the pre-tokens met so far: each is merged once, then copied.

Language repeats itself: 24 MB of documentation are 5.8 million pre-tokens, 100 thousand distinct ones.
A slot of the table (stages/byte_keys.py) holds up to two ids itself:

    column 2, low half    the number of ids
    column 3              the first id, and the second << 32; of three or more, where they stand in `more_ids`

A full table is emptied, so memory is bounded whatever the text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.byte_keys import LOW_HALF, SHORT, Slots, Words, any_key_of, key_of, slot_of
from stages.byte_pairs import Ids, Pairs, merge_bytes
from stages.compiled import inner_kernel, kernel
from stages.pretokens import pretoken_end
from stages.unicode import Classes
from stages.utf8 import Bytes, Offsets

LONGEST_KEPT = 1024  # bytes of a pre-token; longer ones are merged each time
N_ENTRIES, N_KEYS, N_MORE = range(3)


class Table(NamedTuple):
    """What is known of pre-tokens. `used` counts entries, bytes of `keys` and numbers of `more_ids`."""

    slots: Slots
    keys: Bytes
    more_ids: Ids
    used: npt.NDArray[np.int64]


class Vocabulary(NamedTuple):
    """What a tokenizer merges, and `whole`: pre-tokens that have an id of their own, whatever the merges say."""

    byte_ids: Ids
    pairs: Pairs
    whole: Bytes
    whole_offsets: Offsets
    whole_ids: Ids


def new_table(n_slots: int) -> Table:
    """An empty table. `n_slots` is a power of two."""
    long_keys, more_ids = np.zeros(16 * n_slots, np.uint8), np.zeros(4 * n_slots, np.uint32)
    return Table(np.zeros((n_slots, 4), np.int64), long_keys, more_ids, np.zeros(3, np.int64))


@kernel
def encode_texts(
    data: Bytes,
    words: Words,
    offsets: Offsets,
    classes: Classes,
    style: int,
    max_digits: int,
    vocabulary: Vocabulary,
    table: Table,
    ids: Ids,
    id_offsets: Offsets,
) -> int:
    """Writes the ids of the texts, and where those of each text end. Returns the number of all.

    Args:
        data, words: the bytes of all texts, not to be written to, and `words_of` them.
        ids: has place for as many as there are bytes.
        id_offsets: one more than there are texts; the first is left as it is.
    """
    count = 0
    slots, keys, more_ids = table.slots, table.keys, table.more_ids
    for text in range(len(offsets) - 1):
        place, end = offsets[text], offsets[text + 1]
        while place < end:
            after = pretoken_end(data, place, end, classes, style, max_digits)
            if after - place > LONGEST_KEPT:
                count += merge_bytes(data, place, after, vocabulary.byte_ids, vocabulary.pairs, ids[count:])
                place = after
                continue
            first, second = key_of(data, words, place, after)
            slot = slot_of(slots, keys, data, place, after, first, second)
            if slots[slot, 1] == 0:
                slot = learn(data, place, after, first, second, vocabulary, table, ids[count:])
            n_ids, value = slots[slot, 2] & LOW_HALF, slots[slot, 3]
            if n_ids <= 2:
                ids[count] = value & LOW_HALF
                if n_ids == 2:
                    ids[count + 1] = value >> 32
            else:
                for number in range(n_ids):
                    ids[count + number] = more_ids[value + number]
            count += n_ids
            place = after
        id_offsets[text + 1] = count
    return count


@inner_kernel
def learn(
    data: Bytes, start: int, end: int, first: int, second: int, vocabulary: Vocabulary, table: Table, ids: Ids
) -> int:
    """Merges a pre-token that the table lacks, writing to `ids`, and remembers it. Returns its slot."""
    if is_full(table):
        forget(table, vocabulary)
    slot = slot_of(table.slots, table.keys, data, start, end, first, second)
    if table.slots[slot, 1] == 0:  # it may have come back with those that have an id of their own
        n_ids = merge_bytes(data, start, end, vocabulary.byte_ids, vocabulary.pairs, ids)
        remember(table, slot, data, start, end, first, second, ids[:n_ids])
    return slot


@inner_kernel
def is_full(table: Table) -> bool:
    """Whether one more pre-token of any length might not fit."""
    return (
        2 * table.used[N_ENTRIES] >= len(table.slots)
        or table.used[N_KEYS] + LONGEST_KEPT > len(table.keys)
        or table.used[N_MORE] + LONGEST_KEPT > len(table.more_ids)
    )


@kernel
def forget(table: Table, vocabulary: Vocabulary) -> None:
    """Empties the table of all but the pre-tokens that have an id of their own."""
    for slot in range(len(table.slots)):
        table.slots[slot, 1] = 0
    for number in range(len(table.used)):
        table.used[number] = 0
    data, offsets = vocabulary.whole, vocabulary.whole_offsets
    for number in range(len(offsets) - 1):
        start, end = offsets[number], offsets[number + 1]
        first, second = any_key_of(data, start, end)
        slot = slot_of(table.slots, table.keys, data, start, end, first, second)
        remember(table, slot, data, start, end, first, second, vocabulary.whole_ids[number : number + 1])


@inner_kernel
def remember(table: Table, slot: int, data: Bytes, start: int, end: int, first: int, second: int, ids: Ids) -> None:
    """Fills a free slot."""
    table.used[N_ENTRIES] += 1
    key_start = table.used[N_KEYS]
    if end - start > SHORT:
        for place in range(end - start):
            table.keys[key_start + place] = data[start + place]
        table.used[N_KEYS] += end - start
    table.slots[slot, 0], table.slots[slot, 1] = first, second
    table.slots[slot, 2] = key_start << 32 | len(ids)
    if len(ids) <= 2:
        table.slots[slot, 3] = np.int64(ids[0]) | (np.int64(ids[1]) << 32 if len(ids) == 2 else 0)
        return
    start = table.used[N_MORE]
    for number in range(len(ids)):
        table.more_ids[start + number] = ids[number]
    table.used[N_MORE] += len(ids)
    table.slots[slot, 3] = start
