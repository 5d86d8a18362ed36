"""The choices of one HTTP request (prompts times n) in the engine, as one asynchronous stream of their pieces."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from serving.metrics import Metrics
from serving.request import Piece, Request
from serving.worker import Worker


class Choices:
    """Hands the requests in; leaving the context cancels what still runs, so that its rows are free.

    Raises:
        Busy: too many wait. What was handed in before is cancelled.
    """

    def __init__(self, worker: Worker, metrics: Metrics, requests: Sequence[Request], seconds: float):
        self.worker, self.metrics, self.requests = worker, metrics, requests
        self.begun, self.seconds = time.perf_counter(), seconds
        self.queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.running = []
        loop = asyncio.get_running_loop()
        try:
            for index, request in enumerate(requests):
                self.running.append(worker.submit(request, self._sink(loop, index)))
        except BaseException:
            self.cancel()
            raise
        metrics.prompt_tokens.inc(sum(len(request.prompt) for request in requests))

    def _sink(self, loop: asyncio.AbstractEventLoop, index: int):  # type: ignore[no-untyped-def]
        def sink(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody listens
                loop.call_soon_threadsafe(self.queue.put_nowait, (index, piece))

        return sink

    def cancel(self) -> None:
        for running in self.running:
            self.worker.cancel(running)

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Pieces of all choices as they come, until each has ended.

        Raises:
            TimeoutError: the request's time is over.
        """
        left, latest = len(self.requests), [0.0] * len(self.requests)
        end = asyncio.get_running_loop().time() + self.seconds
        try:
            while left:
                async with asyncio.timeout_at(end):
                    index, piece = await self.queue.get()
                now = time.perf_counter()
                if piece.tokens:
                    before, latest[index] = latest[index], now
                    self.metrics.tokens.inc(len(piece.tokens))
                    observe = self.metrics.between if before else self.metrics.first
                    observe.observe(now - (before or self.begun))
                left -= piece.finish is not None
                yield index, piece
        finally:
            self.cancel()
            self.metrics.whole.observe(time.perf_counter() - self.begun)
