"""A server in a thread of the tests: the real application by uvicorn, on a free port."""

from __future__ import annotations

import threading
import time

import uvicorn

from serving.app import make_app
from serving.gate import Limits
from serving.run import listen
from serving.worker import Worker
from stages.exported import Exported


class Serving:
    """Serves while it is entered; `worker` is the engine's."""

    def __init__(self, exported: Exported, worker: Worker, keys: tuple[str, ...] = (), limits: Limits | None = None):
        self.worker = worker
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = make_app(exported, worker, keys, limits, drain_seconds=20)
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=20)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Serving:
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def stop(self) -> None:
        """What SIGTERM does."""
        self.server.should_exit = True

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.thread.join(timeout=30)
        self.socket.close()


def until(holds, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not come to hold"
        time.sleep(0.01)
