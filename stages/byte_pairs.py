"""Merges the bytes of a pre-token into tokens, as byte-level BPE (Sennrich et al., 2016) defines it.

Of all neighbouring pairs the one of the lowest rank is merged, the leftmost first, until none is in
the list. With the merges `h e` (rank 0), `l l` (1), `he ll` (2): h e l l o -> he l l o -> he ll o ->
hell o. Up to 100 bytes the lowest rank is looked for each time; above, a heap holds the pairs, so that
a million letters without a space take a second, not a day.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.byte_keys import LOW_HALF, mixed
from stages.compiled import inline_kernel, inner_kernel, kernel
from stages.utf8 import Bytes

Ids = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]
"""[slots, 2]: a pair as left << 32 | right, -1 where free, and its rank << 32 | id of what it becomes."""

HEAP_FROM = 100  # bytes
NONE = np.iinfo(np.int64).max


def pair_table(left: Ids, right: Ids, merged: Ids) -> Pairs:
    """The table of merges given in the order of their ranks."""
    pairs = np.full((1 << max(4, (4 * len(left)).bit_length()), 2), -1, np.int64)
    fill_pairs(left, right, merged, pairs)
    return pairs


@kernel
def fill_pairs(left: Ids, right: Ids, merged: Ids, pairs: Pairs) -> None:
    mask = len(pairs) - 1
    for rank in range(len(left)):
        pair = np.int64(left[rank]) << 32 | np.int64(right[rank])
        place = mixed(pair) & mask
        while pairs[place, 0] != -1:
            place = (place + 1) & mask
        pairs[place, 0] = pair
        pairs[place, 1] = rank << 32 | np.int64(merged[rank])


@inline_kernel
def value_of(pairs: Pairs, left: int, right: int) -> int:
    """rank << 32 | id, or NONE."""
    pair = np.int64(left) << 32 | np.int64(right)
    mask = len(pairs) - 1
    place = mixed(pair) & mask
    while pairs[place, 0] != pair and pairs[place, 0] != -1:
        place = (place + 1) & mask
    return pairs[place, 1] if pairs[place, 0] == pair else NONE


@kernel
def merge_bytes(data: Bytes, start: int, end: int, byte_ids: Ids, pairs: Pairs, ids: Ids) -> int:
    """Writes the ids of data[start:end] to `ids`, which has place for one a byte. Returns their number."""
    length = end - start
    for place in range(length):
        ids[place] = byte_ids[data[start + place]]
    if length < HEAP_FROM:
        return merge_by_search(ids, length, pairs)
    return merge_by_heap(ids, length, pairs)


@inner_kernel
def merge_by_search(ids: Ids, length: int, pairs: Pairs) -> int:
    values = np.empty(HEAP_FROM, np.int64)
    for place in range(length - 1):
        values[place] = value_of(pairs, ids[place], ids[place + 1])
    while length > 1:
        best = 0
        for place in range(1, length - 1):
            if values[place] < values[best]:
                best = place
        if values[best] == NONE:
            break
        ids[best] = values[best] & LOW_HALF
        length -= 1
        for place in range(best + 1, length):
            ids[place] = ids[place + 1]
            values[place - 1] = values[place]
        if best > 0:
            values[best - 1] = value_of(pairs, ids[best - 1], ids[best])
        if best < length - 1:
            values[best] = value_of(pairs, ids[best], ids[best + 1])
    return length


@inner_kernel
def merge_by_heap(ids: Ids, length: int, pairs: Pairs) -> int:
    """A heap of rank << 32 | place; what no longer stands there when it comes up is passed over."""
    before, after = np.empty(length, np.int64), np.empty(length, np.int64)
    for place in range(length):
        before[place], after[place] = place - 1, place + 1
    heap, size = np.empty(3 * length, np.int64), 0
    for place in range(length - 1):
        value = value_of(pairs, ids[place], ids[place + 1])
        if value != NONE:
            size = push(heap, size, (value >> 32) << 32 | place)
    while size:
        top = heap[0]
        size = pop(heap, size)
        place = top & LOW_HALF
        right = after[place]
        if right < 0 or right >= length:  # merged into its left neighbour, or the last
            continue
        value = value_of(pairs, ids[place], ids[right])
        if value == NONE or value >> 32 != top >> 32:
            continue
        ids[place] = value & LOW_HALF
        following = after[right]
        after[place], after[right] = following, -1
        if following < length:
            before[following] = place
            value = value_of(pairs, ids[place], ids[following])
            if value != NONE:
                size = push(heap, size, (value >> 32) << 32 | place)
        left = before[place]
        if left >= 0:
            value = value_of(pairs, ids[left], ids[place])
            if value != NONE:
                size = push(heap, size, (value >> 32) << 32 | left)
    place, count = 0, 0
    while place < length:
        ids[count] = ids[place]
        count += 1
        place = after[place]
    return count


@inner_kernel
def push(heap: Pairs, size: int, value: int) -> int:
    """Adds a value to a heap whose smallest comes first. Returns the new size."""
    place = size
    while place > 0 and heap[(place - 1) >> 1] > value:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = value
    return size + 1


@inner_kernel
def pop(heap: Pairs, size: int) -> int:
    """Removes the first value. Returns the new size."""
    size -= 1
    value, place = heap[size], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value
    return size
