"""Open addressing with strings of bytes as keys, for compiled kernels: a row of four numbers a slot.

    column 0, 1    the key: up to 15 bytes as they are, with their number in the highest byte;
                   of a longer one a hash and the length, and it is compared with the bytes in `keys`
    column 2       high half: where the key's bytes stand in `keys`; low half: the user's
    column 3       the user's

A slot whose column 1 is 0 is free. One cache line holds two slots, and nothing else is read to find
a short key, which most words are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.compiled import inline_kernel, inner_kernel, kernel
from stages.utf8 import Bytes

Slots = npt.NDArray[np.int64]
Integer = Any  # int, or np.int64 where a kernel needs 64 bits from the start

SHORT = 15  # the most bytes that stand in the slot itself
LONG_KEY = 0x7F << 56
Words = npt.NDArray[np.int64]
GOLDEN = -7046029254386353131  # 2^64 divided by the golden ratio, made odd: spreads keys over the high bits
LOW_HALF = 0xFFFFFFFF


@inline_kernel
def mixed(number: Integer) -> Integer:
    """A number whose low bits depend on all bits of this one."""
    number = (number ^ (number >> 32)) * GOLDEN
    return number ^ (number >> 29)


def words_of(data: Bytes) -> Words:
    """`words[place]` is the number that the eight bytes from `place` on make, the first the lowest; no copy."""
    padded = data if len(data) > 7 else np.zeros(8, np.uint8)
    return np.ndarray(len(padded) - 7, "<i8", padded, strides=(1,))


@inline_kernel
def key_of(data: Bytes, words: Words, start: int, end: int) -> tuple[Integer, Integer]:
    """Columns 0 and 1 of the key data[start:end], which is not empty; `words` is `words_of(data)`."""
    length = end - start
    if length > SHORT or start + 16 > len(data):
        return any_key_of(data, start, end)
    if length <= 8:
        return words[start] & (-1 if length == 8 else (1 << (8 * length)) - 1), length << 56
    return words[start], (words[start + 8] & ((1 << (8 * (length - 8))) - 1)) | (length << 56)


@kernel
def any_key_of(data: Bytes, start: int, end: int) -> tuple[Integer, Integer]:
    """`key_of`, byte by byte."""
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


@inline_kernel
def slot_of(slots: Slots, keys: Bytes, data: Bytes, start: int, end: int, first: int, second: int) -> int:
    """The slot that holds the key data[start:end], or the free one where it belongs."""
    mask = len(slots) - 1
    place = mixed(first ^ mixed(second)) & mask
    while slots[place, 1] != 0 and not (
        slots[place, 0] == first
        and slots[place, 1] == second
        and (end - start <= SHORT or same_bytes(keys, slots[place, 2] >> 32, data, start, end))
    ):
        place = (place + 1) & mask
    return place


@inner_kernel
def same_bytes(keys: Bytes, key_start: int, data: Bytes, start: int, end: int) -> bool:
    for place in range(end - start):  # noqa: SIM110 (a kernel)
        if keys[key_start + place] != data[start + place]:
            return False
    return True
