"""Brings pieces of flat token files into rows: reads in the order of the files, writes where rows want them.

The pieces of a shard of rows lie all over the token files. They are sorted by where they stand; pieces
near each other are read at once, in one go over the files, into a buffer of some megabytes, and a
compiled loop copies each to its slots. So a corpus on a spinning disk is read forwards, memory is the
shard plus the buffer, and nothing is memory-mapped whose pages would count as ours.

    files  [..... bbb .. ccc ....][.. aaa ...]      one read gets b and c, one gets a
    rows   aaabbbb. / cccc....
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.compiled import kernel

NEAR_SLOTS = 1 << 12  # what lies between two pieces is read rather than jumped over
BUFFER_SLOTS = 1 << 21

Integers = npt.NDArray[np.int64]


def gather(
    files: Sequence[Path], starts: Integers, lengths: Integers, targets: Integers, rows: npt.NDArray, after: npt.NDArray
) -> None:
    """Copies pieces of the files, end to end, to their places in `rows`.

    Args:
        starts: the first slot of each piece in the files.
        targets: its place in `rows`; slots between pieces stay as they are.
        after: gets the slot after each piece where that is in the same file; else stays as it is.
    """
    sizes = np.array([path.stat().st_size // rows.dtype.itemsize for path in files], np.int64)
    ends = np.cumsum(sizes)
    order = np.argsort(starts, kind="stable")
    number = np.searchsorted(ends, starts[order], side="right")
    for file in np.unique(number):
        chosen = order[np.searchsorted(number, file) : np.searchsorted(number, file, side="right")]
        within = starts[chosen] - (ends[file] - sizes[file])
        with files[file].open("rb", buffering=0) as opened:
            _from_file(opened.fileno(), int(sizes[file]), within, lengths[chosen], targets[chosen], rows, after, chosen)


def _from_file(  # type: ignore[no-untyped-def]
    file: int, size: int, starts: Integers, lengths: Integers, targets: Integers, rows, after, numbers: Integers
) -> None:
    """Pieces of one file, in its order, a buffer at a time."""
    itemsize = rows.dtype.itemsize
    stops = np.minimum(starts + lengths + 1, size)  # with the slot after it
    reach = np.maximum.accumulate(stops)
    is_new = np.concatenate([[True], starts[1:] > reach[:-1] + NEAR_SLOTS])
    is_read = np.cumsum(np.where(is_new, stops - starts, np.diff(reach, prepend=0)))  # slots, up to each piece
    first = 0
    while first < len(starts):
        before = is_read[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(is_read, before + BUFFER_SLOTS, side="right")))
        new = is_new[first:last].copy()
        new[0] = True
        heads = first + np.flatnonzero(new)
        tails = np.append(heads[1:], last)
        run_starts, run_stops = starts[heads], reach[tails - 1]
        places = np.concatenate([[0], np.cumsum(run_stops - run_starts)])
        buffer = np.empty(int(places[-1]), rows.dtype)
        view = memoryview(buffer.view(np.uint8))  # type: ignore[arg-type]
        for start, stop, place in zip(run_starts.tolist(), run_stops.tolist(), places.tolist(), strict=False):
            _read(file, view[place * itemsize : (place + stop - start) * itemsize], start * itemsize)
        shift = np.repeat(places[:-1] - run_starts, tails - heads)
        where = starts[first:last] + shift
        _copy(buffer, where, lengths[first:last], targets[first:last], rows)
        inside = np.flatnonzero(starts[first:last] + lengths[first:last] < size)
        after[numbers[first:last][inside]] = buffer[where[inside] + lengths[first:last][inside]]
        first = last


def _read(file: int, view: memoryview, offset: int) -> None:
    while len(view):
        n_bytes = os.preadv(file, [view], offset)
        if not n_bytes:
            raise OSError(f"a file of tokens in scratch ends before byte {offset}")
        view, offset = view[n_bytes:], offset + n_bytes


@kernel
def _copy(buffer, starts, lengths, targets, rows):  # type: ignore[no-untyped-def]
    for piece in range(len(starts)):
        start, target = starts[piece], targets[piece]
        for slot in range(lengths[piece]):
            rows[target + slot] = buffer[start + slot]
