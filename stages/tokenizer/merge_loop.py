"""Learns byte-level BPE from counted words: Hugging Face's merges, in time linear in the places merged.

Words lie end to end in one array of cells, one cell a byte, with -1 between. A token of n bytes has
its id in its first cell and -n in its last, so both neighbours of a token are one step away:

    -1  h  e  l  l  o  -1      after the merge of "ll":  -1  h  e  L -2  o  -1      cells hold ids; L is "ll"

A pair has a count, and lists of the places where it stands, each written when a merge made the pair. A
queue gives the most frequent pair, of equal counts that with the smaller ids. Counts in the queue may be
too high, and places may be stale: both are looked at again when their turn comes. So a run of a
million letters costs no more than a million letters in words.

As in Hugging Face's trainer, a merged pair keeps its count, and a merge may make a token that another
merge has made ("a" + "bc" and "ab" + "c"): it gets the same id. Counts have 64 bits, theirs 32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.byte_keys import LOW_HALF, Slots, any_key_of, mixed, slot_of
from stages.compiled import inline_kernel, inner_kernel, kernel
from stages.tokenizer.merge_queue import COUNT, KEY, LIST, dequeue, enqueue, sift_down
from stages.utf8 import Bytes, Offsets

Cells = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

SEPARATOR = -1
N_PAIRS, N_LISTS, N_PLACES, N_QUEUED, N_TOKENS, N_MERGES, N_BYTES = range(7)
PAIR, PAIR_COUNT, FRESH = range(3)  # columns of pairs
DONE, PAIRS_FULL, LISTS_FULL, PLACES_FULL, MERGES_FULL, BYTES_FULL = range(6)


class Learning(NamedTuple):
    """Everything that learning changes.

    Attributes:
        cells: the words.
        steps: [n, 2]: from which cell on words have which count; words come by falling count.
        pairs: [capacity, 3]: open addressing: left << 32 | right, -1 where free; the count; and how many places the
            pair got from the present merge, or -1 - its new list.
        lists: [n, 2]: where in `places` each list begins, and its length; the pair follows from the queue.
        places: cells where pairs stand.
        queue: [n, 3]: a heap of count, pair, list.
        tokens: [n, 2]: where in `token_bytes` each token begins, and its length.
        token_slots: finds a token by its bytes (stages/byte_keys.py).
        merges: [n, 3]: left, right, and the token they become.
        used: how much of each is in use.
    """

    cells: Cells
    steps: Numbers
    pairs: Numbers
    lists: Numbers
    places: Cells
    queue: Numbers
    tokens: Numbers
    token_bytes: Bytes
    token_slots: Slots
    merges: Numbers
    used: Numbers


@kernel
def fill_cells(data: Bytes, offsets: Offsets, order: Numbers, byte_ids: Cells, cells: Cells) -> None:
    """Writes the words, in an order, as the ids of their bytes."""
    cells[0] = SEPARATOR
    at = 1
    for number in order:
        for place in range(offsets[number], offsets[number + 1]):
            cells[at] = byte_ids[data[place]]
            at += 1
        cells[at] = SEPARATOR
        at += 1


@inner_kernel
def pair_at(pairs: Numbers, used: Numbers, left: int, right: int) -> int:
    """The row of a pair, a new one if it was never seen."""
    key = np.int64(left) << 32 | np.int64(right)
    mask = len(pairs) - 1
    row = mixed(key) & mask
    while pairs[row, PAIR] != key:
        if pairs[row, PAIR] == -1:
            pairs[row, PAIR], pairs[row, PAIR_COUNT], pairs[row, FRESH] = key, 0, 0
            used[N_PAIRS] += 1
            break
        row = (row + 1) & mask
    return row


@kernel
def move_pairs(old: Numbers, new: Numbers) -> None:
    """Enters all pairs into free rows."""
    mask = len(new) - 1
    for row in range(len(old)):
        if old[row, PAIR] != -1:
            to = mixed(old[row, PAIR]) & mask
            while new[to, PAIR] != -1:
                to = (to + 1) & mask
            for column in range(3):
                new[to, column] = old[row, column]


@kernel
def count_first_pairs(learning: Learning) -> None:
    """Counts the pairs of bytes, and lists and queues them."""
    cells, steps, pairs, used = learning.cells, learning.steps, learning.pairs, learning.used
    step = 0
    for place in range(1, len(cells) - 1):
        if cells[place] != SEPARATOR and cells[place + 1] != SEPARATOR:
            step = step_of(steps, step, place)
            row = pair_at(pairs, used, cells[place], cells[place + 1])
            pairs[row, PAIR_COUNT] += steps[step, 1]
            pairs[row, FRESH] += 1
    for row in range(len(pairs)):
        if pairs[row, PAIR] != -1:
            new_list(learning, row)
    for place in range(1, len(cells) - 1):
        if cells[place] != SEPARATOR and cells[place + 1] != SEPARATOR:
            row = pair_at(pairs, used, cells[place], cells[place + 1])
            append(learning, -1 - pairs[row, FRESH], place)
    for row in range(len(pairs)):
        pairs[row, FRESH] = 0


@inner_kernel
def new_list(learning: Learning, row: int) -> None:
    """A list with room for what a pair has got in this merge, queued with the count of the pair."""
    used, pairs = learning.used, learning.pairs
    this = used[N_LISTS]
    learning.lists[this, 0], learning.lists[this, 1] = used[N_PLACES], 0
    used[N_PLACES] += pairs[row, FRESH]
    used[N_LISTS] += 1
    pairs[row, FRESH] = -1 - this
    enqueue(learning.queue, used[N_QUEUED], pairs[row, PAIR_COUNT], pairs[row, PAIR], this)
    used[N_QUEUED] += 1


@inline_kernel
def append(learning: Learning, this: int, place: int) -> None:
    learning.places[learning.lists[this, 0] + learning.lists[this, 1]] = place
    learning.lists[this, 1] += 1


@inline_kernel
def step_of(steps: Numbers, step: int, place: int) -> int:
    """The last step that begins at or before `place`; `step` begins before it and is a good guess."""
    if step + 1 < len(steps) and steps[step + 1, 0] <= place:
        step += 1
        if step + 1 < len(steps) and steps[step + 1, 0] <= place:
            beyond = len(steps)
            while beyond - step > 1:
                middle = (step + beyond) >> 1
                if steps[middle, 0] <= place:
                    step = middle
                else:
                    beyond = middle
    return step


@kernel
def learn_merges(learning: Learning, vocab_size: int, min_frequency: int) -> int:
    """Merges until the vocabulary is full or no pair is frequent enough.

    Returns DONE, or which array must grow before the next call goes on.
    """
    queue, used = learning.queue, learning.used
    while used[N_TOKENS] < vocab_size and used[N_QUEUED]:
        key, this = queue[0, KEY], queue[0, LIST]
        left, right = key >> 32, key & LOW_HALF
        count = learning.pairs[pair_at(learning.pairs, used, left, right), PAIR_COUNT]
        if count != queue[0, COUNT]:
            queue[0, COUNT] = count
            sift_down(queue, used[N_QUEUED])
            continue
        if count < max(min_frequency, 1):
            break
        short = what_is_short(learning, this, learning.tokens[left, 1] + learning.tokens[right, 1])
        if short:
            return short
        used[N_QUEUED] -= 1
        dequeue(queue, used[N_QUEUED])
        token = token_of(learning, left, right)
        merges = learning.merges
        merges[used[N_MERGES], 0], merges[used[N_MERGES], 1], merges[used[N_MERGES], 2] = left, right, token
        used[N_MERGES] += 1
        merge_places(learning, this, left, right, token)
    return DONE


@inner_kernel
def what_is_short(learning: Learning, this: int, n_bytes: int) -> int:
    """Which array might not hold what the merge of a list adds: pairs of the new token with old ones, at the most
    two for each place."""
    used, n_places = learning.used, 2 * learning.lists[this, 1]
    n_pairs = min(n_places, 2 * used[N_TOKENS] + 2)
    if 4 * (used[N_PAIRS] + n_pairs) > 3 * len(learning.pairs):
        return PAIRS_FULL
    if used[N_LISTS] + n_pairs > len(learning.lists) or used[N_QUEUED] + n_pairs > len(learning.queue):
        return LISTS_FULL
    if used[N_PLACES] + n_places > len(learning.places):
        return PLACES_FULL
    if used[N_MERGES] == len(learning.merges):
        return MERGES_FULL
    if used[N_BYTES] + n_bytes > len(learning.token_bytes):
        return BYTES_FULL
    return DONE


@inner_kernel
def token_of(learning: Learning, left: int, right: int) -> int:
    """The token whose bytes are those of two others; a new one if there is none."""
    used, data, tokens = learning.used, learning.token_bytes, learning.tokens
    start = end = used[N_BYTES]
    for part in (left, right):
        length = tokens[part, 1]
        for place in range(length):
            data[end + place] = data[tokens[part, 0] + place]
        end += length
    first, second = any_key_of(data, start, end)
    slots = learning.token_slots
    slot = slot_of(slots, data, data, start, end, first, second)
    if slots[slot, 1] == 0:
        token = used[N_TOKENS]
        slots[slot, 0], slots[slot, 1], slots[slot, 2], slots[slot, 3] = first, second, start << 32, token
        tokens[token, 0], tokens[token, 1] = start, end - start
        used[N_TOKENS] += 1
        used[N_BYTES] = end
    return slots[slot, 3]


@inner_kernel
def merge_places(learning: Learning, this: int, left: int, right: int, token: int) -> None:
    """Merges a pair at all places of a list, from left to right, and lists the pairs that this makes."""
    cells, tokens, pairs, used = learning.cells, learning.tokens, learning.pairs, learning.used
    start, n_places = learning.lists[this, 0], learning.lists[this, 1]
    made, n_made, step = np.empty((2 * n_places, 2), np.int32), 0, 0
    for at in range(start, start + n_places):
        place = learning.places[at]
        middle = place + tokens[left, 1]
        if cells[place] != left or cells[middle] != right:
            continue
        step = step_of(learning.steps, step, place)
        count = learning.steps[step, 1]
        before = cells[place - 1]
        if before != SEPARATOR:
            before_at = place - 1 if before >= 0 else place + before
            before = cells[before_at]
            pairs[pair_at(pairs, used, before, left), PAIR_COUNT] -= count
            row = pair_at(pairs, used, before, token)
            pairs[row, PAIR_COUNT] += count
            pairs[row, FRESH] += 1
            made[n_made, 0], made[n_made, 1] = row, before_at
            n_made += 1
        end = middle + tokens[right, 1]
        cells[place], cells[middle] = token, SEPARATOR  # a middle that is no last cell is never looked at
        cells[end - 1] = place - end
        after = cells[end]
        if after != SEPARATOR:
            pairs[pair_at(pairs, used, right, after), PAIR_COUNT] -= count
            row = pair_at(pairs, used, token, after)
            pairs[row, PAIR_COUNT] += count
            pairs[row, FRESH] += 1
            made[n_made, 0], made[n_made, 1] = row, place
            n_made += 1
    learning.lists[this, 1] = 0
    list_made(learning, made, n_made)


@inner_kernel
def list_made(learning: Learning, made: Cells, n_made: int) -> None:
    """Lists the places of new pairs: the first rows of `made`, row of the pair and place."""
    pairs = learning.pairs
    for at in range(n_made):
        row = made[at, 0]
        if pairs[row, FRESH] > 0 and pairs[row, PAIR_COUNT] > 0:
            new_list(learning, row)
        if pairs[row, FRESH] < 0:
            append(learning, -1 - pairs[row, FRESH], made[at, 1])
    for at in range(n_made):
        pairs[made[at, 0], FRESH] = 0


@kernel
def drop_stale_places(learning: Learning, keys: Numbers) -> None:
    """Moves the lists together, without the places where their pair stands no more.

    Args:
        keys: the pair of each list; 0 for lists that are merged.
    """
    cells, places, lists = learning.cells, learning.places, learning.lists
    at = 0
    for this in range(learning.used[N_LISTS]):
        start, n_places = lists[this, 0], lists[this, 1]
        left, right = keys[this] >> 32, keys[this] & LOW_HALF
        lists[this, 0] = at
        for number in range(start, start + n_places):
            place = places[number]
            if cells[place] == left and cells[place + learning.tokens[left, 1]] == right:
                places[at] = place
                at += 1
        lists[this, 1] = at - lists[this, 0]
    learning.used[N_PLACES] = at
