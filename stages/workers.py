"""Maps a function over items in worker processes, results in the order of the items.

Order in, order out: what a stage writes cannot depend on the number of workers. At most four items
per worker wait at any time, so a generator of batches keeps memory bounded however long it is.
Example with two workers: batches 0..7 are handed out, batch 0's result is taken, batch 8 goes out.

One worker means no process at all: the same function runs here, which is also what a debugger wants.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WAITING_PER_WORKER = 4


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], n_workers: int) -> Iterator[Result]:
    """`map(function, items)` in `n_workers` processes.

    Args:
        function: a function of a module (or a `functools.partial` of one), so that it can be pickled.
        items: taken lazily, from the caller's process.

    Raises:
        whatever `function` raised, at the place of its item.
    """
    if n_workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= WAITING_PER_WORKER * n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Groups neighbours until their sizes add up to `limit`; cut by content, never by worker."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _start_worker() -> None:
    """A worker leaves signals to its parent, does not outlive it, not even after kill -9, and is one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
