"""Open addressing with strings of bytes as keys, for compiled kernels: a row of four numbers a slot.

    column 0, 1    the key: up to 15 bytes as they are, with their number in the highest byte;
                   of a longer one a hash and the length, and it is compared with the bytes in `keys`
    column 2       high half: where the key's bytes stand in `keys`; low half: the user's
    column 3       the user's

A slot whose column 1 is 0 is free. One cache line holds two slots, and nothing else is read to find
a short key, which most words are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import inline_kernel, kernel
from stages.utf8 import Bytes

Slots = npt.NDArray[np.int64]

SHORT = 15  # the most bytes that stand in the slot itself
LONG_KEY = 0x7F << 56
GOLDEN = -7046029254386353131  # 2^64 divided by the golden ratio, made odd: spreads keys over the high bits
LOW_HALF = 0xFFFFFFFF


@inline_kernel
def mixed(number: int) -> int:
    """A number whose low bits depend on all bits of this one."""
    number = (number ^ (number >> 32)) * GOLDEN
    return number ^ (number >> 29)


@kernel
def key_of(data: Bytes, start: int, end: int) -> tuple[int, int]:
    """Columns 0 and 1 of the key data[start:end], which is not empty."""
    first, second = np.int64(0), np.int64(0)
    length = end - start
    if length <= SHORT:
        for place in range(min(length, 8)):
            first |= np.int64(data[start + place]) << (8 * place)
        for place in range(8, length):
            second |= np.int64(data[start + place]) << (8 * (place - 8))
        return first, second | (length << 56)
    for place in range(start, end):
        first = (first ^ np.int64(data[place])) * GOLDEN
        first ^= first >> 29
    return first, LONG_KEY | length


@kernel
def slot_of(slots: Slots, keys: Bytes, data: Bytes, start: int, end: int, first: int, second: int) -> int:
    """The slot that holds the key data[start:end], or the free one where it belongs."""
    mask = len(slots) - 1
    place = mixed(first ^ mixed(second)) & mask
    while slots[place, 1] != 0:
        if slots[place, 0] == first and slots[place, 1] == second:
            if end - start <= SHORT or same_bytes(keys, slots[place, 2] >> 32, data, start, end):
                return place
        place = (place + 1) & mask
    return place


@kernel
def same_bytes(keys: Bytes, key_start: int, data: Bytes, start: int, end: int) -> bool:
    for place in range(end - start):  # noqa: SIM110 (a kernel)
        if keys[key_start + place] != data[start + place]:
            return False
    return True
