"""How a stage is asked to stop, and how it hears that its parent is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

from stages.errors import Stopped


class Signals:
    """SIGINT, SIGTERM, SIGHUP and SIGUSR1 raise `Stopped`, or wait in `received` while deferred.

    Training defers them to the end of its step, where the state is whole, and writes a checkpoint. SIGHUP comes
    when the terminal or the connection ends; what nohup has started ignores it, and goes on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.received = number
        if not self.deferred:
            raise Stopped(signal.Signals(number).name)

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Within this block signals only set `received`."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


signals = Signals()


def die_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent dies, so that kill -9 of it leaves no process behind."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
