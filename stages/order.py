"""The order in which training reads rows: a pure function of seed and position, computed and not stored.

    data_order(n_rows=5, seed=0, start=3, count=4)      ->      the last two rows of epoch 0, two of epoch 1

Every epoch is a permutation of all rows of its own: a Feistel network over the smallest even number of bits that can
count the rows, walked until it lands on a row (Black and Rogaway, 2002). So resuming at any step costs nothing, and
ranks, accumulation and workers cannot change it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.compiled import bare_kernel, inline_kernel

ROUNDS = 4


def data_order(n_rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Row ids at positions start .. start + count of the endless training order, int64."""
    half_bits = max(1, (max(n_rows - 1, 1).bit_length() + 1) // 2)
    keys = [(seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**64 for number in range(ROUNDS)]
    rows = np.empty(count, np.uint64)
    _walk(np.uint64(n_rows), np.array(keys, np.uint64), np.uint64(half_bits), np.uint64(start), rows)
    return rows.astype(np.int64)


@bare_kernel
def _walk(
    n_rows: Any, keys: npt.NDArray[np.uint64], half_bits: Any, start: Any, rows: npt.NDArray[np.uint64]
) -> None:  # fmt: skip
    """Fills `rows` from position `start` on; all numbers are uint64."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    for place in range(len(rows)):
        position = start + np.uint64(place)
        epoch = position // n_rows
        row = position - epoch * n_rows
        while True:
            left, right = row >> half_bits, row & mask
            for number in range(len(keys)):
                left, right = right, left ^ (_mixed(right + _mixed(epoch + keys[number])) & mask)
            row = (left << half_bits) | right
            if row < n_rows:
                break
        rows[place] = row


@inline_kernel
def _mixed(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele et al., 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
