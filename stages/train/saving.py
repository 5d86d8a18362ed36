"""Saves checkpoints beside the training, which waits for copies of the tensors alone, not for the disk.

    training thread   ...step 100 | copy | step 101 | step 102 | ...
    writing thread                       | write, sync, rename |

The copies lie in memory of the processor that the next save uses again, so saving costs once the bytes of a
checkpoint. From a GPU they go to pinned memory in the order of its other work: the processor does not wait, and
what comes after may change the tensors at once. Of what lies in parts (sharding.py) every rank saves its own.

A save waits for the one before. What the thread could not write (a full disk) is raised at the next step, and
the checkpoints that were there are whole as before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from stages.train.sharding import local

Tensors = dict[str, dict[str, Tensor]]  # by file, then by name


class Saver:
    """One thread that writes, and the memory that it writes from.

    Attributes:
        closing: set when the training ends, after which other ranks are waited for only while their files grow.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None
        self._memory: Tensors = {}

    def save(self, tensors: Tensors, write: Callable[[Tensors], None]) -> None:
        """Copies the tensors and has the thread call `write` with the copies.

        Raises:
            OSError: the save before this one failed.
        """
        self.wait()
        copied = self._copy(tensors)

        def work() -> None:
            if copied is not None:
                copied.synchronize()
            write(self._memory)

        self._pending = self._thread.submit(work)

    def check(self) -> None:
        """Raises what the last save ended with, if it has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last save has ended; raises what it ended with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self.closing.set()
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _copy(self, tensors: Tensors) -> torch.cuda.Event | None:
        """Fills the memory; the event after which it is whole, where a GPU does that."""
        on_gpu = any(tensor.is_cuda for named in tensors.values() for tensor in named.values())
        old, self._memory = self._memory, {}
        for file, named in tensors.items():
            self._memory[file] = {}
            for name, value in named.items():
                tensor = local(value.detach())
                copy = old.get(file, {}).get(name)
                if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
                self._memory[file][name] = copy.copy_(tensor, non_blocking=on_gpu)
        return torch.cuda.current_stream().record_event() if on_gpu else None
