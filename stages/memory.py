"""Keeps memory flat: what was freed goes back, and does not lie in an allocator while the next step takes its own.

    count words (400 MB at the peak)  ->  release_freed()  ->  learn merges: begins at 270 MB, not at 330

Arrow's own allocator, mimalloc, keeps parts of it for good: 0.1 MB for each Parquet file that was read, so that the
workers of a corpus four times as large took a tenth more. The C library's does not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

MAPPED_BYTES = 1 << 20
KEPT_BYTES = 1 << 26
TRIM_THRESHOLD, MAP_THRESHOLD = -1, -3


def use_system_allocator() -> None:
    """Arrow reads this when it is imported, so call it before.

    What takes a megabyte or more is mapped by itself and goes back when it is freed. Left alone, the C library raises
    that bound to whatever was freed, up to 32 MB, and the heap grows around a few strings that stay: from 62 to 130 MB
    while 8 files of 68 MB are read one after the other, where 23 MB are enough.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    _set({MAP_THRESHOLD: MAPPED_BYTES})


def keep_freed() -> None:
    """Lets this process and its workers use freed memory again, up to arrays of 64 MB, where it would go back after
    each batch, and come again page by page for the next: a tenth of the time of dedup, and a sixteenth of a step of
    training on a CPU. `release_freed` gives it back.
    """
    _set({MAP_THRESHOLD: KEPT_BYTES, TRIM_THRESHOLD: 2 * KEPT_BYTES})


def collect_rarely() -> None:
    """Lets Python look for cycles after a hundred thousand new objects. Else it looks among all that is imported again
    and again, for an eighth of the time that a stage takes to begin. Call it before imports."""
    gc.set_threshold(100_000, 50, 50)


def _set(options: dict[int, int]) -> None:
    """Options of glibc's allocator; other C libraries have none."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in options.items():
            mallopt(option, value)


def release_freed() -> None:
    """Takes some milliseconds: for the end of a step, not for a loop."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries have none
        if trim:
            trim(0)
