"""Runs the application by uvicorn until a signal, with the gate's lines as the only log."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time

from fastapi import FastAPI

from serving.worker import Worker
from stages.errors import BadInput

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before a model is loaded for nothing.

    Raises:
        BadInput: the address is taken or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error}; name another") from None
    return found


def run(app: FastAPI, worker: Worker, listening: socket.socket, drain_seconds: float) -> None:
    """Serves until SIGINT or SIGTERM; then takes no more connections and gives answers that run their time."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            running, begun = len(worker.engine.running) + worker.waiting, time.perf_counter()
            logger.info(json.dumps({"event": "drain", "running": running, "at_most_seconds": drain_seconds}))
            await super().shutdown(sockets)
            logger.info(json.dumps({"event": "drained", "seconds": round(time.perf_counter() - begun, 3)}))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("millrace.serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=30, server_header=False,
        timeout_graceful_shutdown=int(drain_seconds) + 1,
    )  # fmt: skip
    Server(settings).run(sockets=[listening])
