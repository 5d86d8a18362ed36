"""The thread in which the engine runs. Others hand requests in and cancel them; pieces come back by their sinks.

    worker.submit(request, sink)    from any thread; the sink is called in the worker's
    worker.stop(seconds)            finishes what runs, for as long as that; what is left then is cancelled

The line of requests that wait is bounded: beyond `max_waiting` for whom no row is free a request is refused
(`Busy`), so that whoever balances load sends it elsewhere, rather than waiting for minutes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from serving.engine import Engine, Running, Sink
from serving.request import Request
from stages.wording import counted

log = logging.getLogger("millrace.serving")


class Busy(Exception):
    """As many requests wait as are allowed to."""


class Down(Busy):
    """The engine's thread has ended by an error; only a new process helps."""


class Worker:
    def __init__(self, engine: Engine, max_waiting: int = 256):
        self.engine, self.max_waiting = engine, max_waiting
        self.failures = 0  # steps that raised
        self._wake = threading.Condition()
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._ended

    @property
    def waiting(self) -> int:
        return len(self.engine.waiting)

    def submit(self, request: Request, sink: Sink) -> Running:
        """Hands a request in.

        Raises:
            Busy: too many wait, or the worker stops. Down: it has ended by an error.
            ValueError: it does not fit.
        """
        with self._wake:
            if self._ended and not self._stopping:
                raise Down("the engine has ended by an error; the server must be started anew")
            free = self.engine.reader.n_rows - len(self.engine.running)  # they are taken at the next step
            if self._stopping or self.waiting >= self.max_waiting + free:
                raise Busy(f"{counted(self.waiting, 'request')} waiting; try again later")
            running = self.engine.submit(request, sink)
            self._wake.notify()
            return running

    def cancel(self, running: Running) -> None:
        """Frees its row at the next step; nothing happens if it has ended."""
        running.cancelled = True
        with self._wake:
            self._wake.notify()

    def stop(self, seconds: float = 0.0) -> None:
        """Takes no more requests, waits for those that run, and ends the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=seconds)  # it ends when it is idle, which only itself sees between steps
        for running in (*self.engine.running, *self.engine.waiting):
            self.cancel(running)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            self._steps()
        finally:
            with self._wake:
                self._ended = True  # from here on nothing is handed in
            self.engine.fail()

    def _steps(self) -> None:
        while True:
            with self._wake:
                while self.engine.idle:
                    if self._stopping:
                        return
                    self._wake.wait()
            try:
                self.engine.step()
            except Exception:
                self.failures += 1
                log.exception("a step of the engine failed; what ran is ended")
                self.engine.fail()


@contextlib.contextmanager
def started(worker: Worker, seconds: float = 0.0) -> Iterator[Worker]:
    """The worker while it runs; `seconds` as for `stop`."""
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(seconds)
