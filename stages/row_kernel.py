"""Packed rows written out as the model reads them, in one pass over their tokens.

    input_ids  E a b E c d e .     lengths [3, 4]    next_ids [E, E]      a row of 8 slots, the last of them padding

    inputs     E a b E c d e .     segments   0 0 0 1 1 1 1 -
    labels     a b E c d e E -     positions  0 1 2 0 1 2 3 0

numpy needs a dozen passes for the same, over arrays as long as the batch (benchmarks/loader.py has the rates).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.compiled import bare_kernel

IGNORED_LABEL = -100
NO_SEGMENT = -1

Integers = npt.NDArray[np.signedinteger[Any]]


@bare_kernel
def write_rows(
    rows: Integers, places: Integers, input_ids: npt.NDArray[Any], boundaries: Integers, lengths: Integers,
    next_ids: npt.NDArray[Any], inputs: Integers, labels: Integers, segments: Integers, positions: Integers,
) -> None:  # fmt: skip
    """Row `rows[k]` of a part of a shard becomes row `places[k]` of the four arrays [B, T].

    Args:
        input_ids: [rows of the part, T].
        boundaries: where the segments of each row begin among all of the part, and where the last one ends.
        lengths: of all segments, in slots.
        next_ids: the label of the last slot of each segment.
    """
    length = input_ids.shape[1]
    for k in range(len(rows)):
        row, place = rows[k], places[k]
        for slot in range(length):
            inputs[place, slot] = input_ids[row, slot]
        for slot in range(length - 1):
            labels[place, slot] = input_ids[row, slot + 1]
        begin, first = 0, boundaries[row]
        for segment in range(first, boundaries[row + 1]):
            end = begin + lengths[segment]
            for slot in range(begin, end):
                segments[place, slot] = segment - first
            for slot in range(begin, end):
                positions[place, slot] = slot - begin
            labels[place, end - 1] = next_ids[segment]
            begin = end
        for slot in range(begin, length):
            labels[place, slot] = IGNORED_LABEL
            segments[place, slot] = NO_SEGMENT
            positions[place, slot] = 0
