"""Cuts a corpus into pieces of work whose bounds depend on content alone, so that a change redoes little.

A large file of rows is cut into ranges of equal size, at most about 16 MB, a piece each, so that one file gives all
cores work. Small files go together, and where a
group ends is decided by the file's own name and size, never by a count:

    files   a b c d | e f | g h i        hash of d and of f says: a group ends here
    + x after e:    a b c d | e x f | g h i        only the group of e is another

So one file that is added, removed or changed makes one new group. A group that grows beyond 16 MB is cut
there, which moves no bound after its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import xxhash

Item = TypeVar("Item")
PIECE_BYTES = 16 << 20
GROUP_BYTES = 8 << 20  # small files together, on average


def groups(
    files: Iterable[tuple[Item, str, int]], mean: int = GROUP_BYTES, most: int = PIECE_BYTES
) -> Iterator[list[Item]]:
    """Groups neighbours; of each item its name and size in bytes are given."""
    group: list[Item] = []
    total = 0
    for item, name, size in files:
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
        if ends_group(name, size, mean):
            yield group
            group, total = [], 0
    if group:
        yield group


def even_step(size: int, most: int) -> int:
    """The size of equal pieces of at most `most`: 25 of at most 16 are two of 13."""
    return -(-size // max(-(-size // most), 1))


def ends_group(name: str, size: int, mean: int) -> bool:
    """Whether a group ends after this file: by chance of its name, the likelier the larger it is."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64 < size / mean


def ranges(cuts: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, rows before) of each piece of a file that is cut at `cuts`, pairs of place and rows before it."""
    begins = [(0, 0), *map(tuple, cuts)]
    for (begin, before), (following, _) in zip(begins, [*begins[1:], (end, 0)], strict=True):
        yield begin, following, before
