"""The queue of the merge loop: a binary heap of rows (count, pair, list), the most frequent pair first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import inline_kernel, inner_kernel

Numbers = npt.NDArray[np.int64]

COUNT, KEY, LIST = range(3)  # columns


@inline_kernel
def comes_first(queue: Numbers, one: int, other: int) -> bool:
    """More frequent, then smaller ids, then the older list."""
    if queue[one, COUNT] != queue[other, COUNT]:
        return queue[one, COUNT] > queue[other, COUNT]
    if queue[one, KEY] != queue[other, KEY]:
        return queue[one, KEY] < queue[other, KEY]
    return queue[one, LIST] < queue[other, LIST]


@inline_kernel
def exchange(queue: Numbers, one: int, other: int) -> None:
    for column in range(3):
        queue[one, column], queue[other, column] = queue[other, column], queue[one, column]


@inner_kernel
def enqueue(queue: Numbers, place: int, count: int, key: int, this: int) -> None:
    """Adds an entry to a queue of `place` entries."""
    queue[place, COUNT], queue[place, KEY], queue[place, LIST] = count, key, this
    while place > 0 and comes_first(queue, place, (place - 1) >> 1):
        exchange(queue, place, (place - 1) >> 1)
        place = (place - 1) >> 1


@inner_kernel
def dequeue(queue: Numbers, size: int) -> None:
    """Removes the first, so that `size` entries are left."""
    exchange(queue, 0, size)
    sift_down(queue, size)


@inner_kernel
def sift_down(queue: Numbers, size: int) -> None:
    """Moves the first to where it belongs."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and comes_first(queue, child + 1, child):
            child += 1
        if not comes_first(queue, child, place):
            break
        exchange(queue, place, child)
        place = child
