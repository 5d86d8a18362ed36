"""The Prefect API that a flow reports to: the configured server if it answers, else a temporary one.

Prefect can start a temporary server by itself. Ours differs in three ways that matter at the end of a
run: Ctrl-C in the terminal does not reach it, so the flow can still report that it was stopped; it dies
with us, also by kill -9; and a slow start fails with a line, after two minutes instead of 20 seconds.
Its history is Prefect's own, in PREFECT_HOME: `prefect server start` shows these runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipeline.programs import bound

START_SECONDS = 120
ANSWER_SECONDS = 5


class NoServer(Exception):
    """No Prefect API can be had. One line."""


@contextlib.contextmanager
def prefect_api(local: str = "") -> Iterator[str]:
    """The address of a Prefect API that answers; within the block Prefect uses it.

    A configured server that does not answer does not stop the pipeline: it is named, and a temporary
    one takes its place.

    Args:
        local: a server that is used where none is configured and it answers: that of `millrace up`.

    Raises:
        NoServer: the temporary server did not start.
    """
    from prefect.settings import PREFECT_API_URL

    configured = PREFECT_API_URL.value()
    if configured and not (problem := unreachable(configured)):
        yield configured
        return
    if not configured and local and not unreachable(local):
        with _use(local, local.removesuffix("/api")):
            yield local
            _deliver()
        return
    if configured:
        line = f"millrace: {configured} does not answer ({problem}); a temporary Prefect server is used"
        print(line, file=sys.stderr, flush=True)
    with temporary_server() as url, _use(url):
        yield url
        _deliver()


@contextlib.contextmanager
def _use(url: str, pages: str = "") -> Iterator[None]:
    """Makes `url` the API of this process, for all its threads: Prefect's workers have their own.

    The temporary server has no pages to show.
    """
    from prefect.context import refresh_global_settings_context

    settings = {"PREFECT_API_URL": url, "PREFECT_UI_URL": pages}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    refresh_global_settings_context()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        refresh_global_settings_context()


def _deliver() -> None:
    """Waits for the log lines and events that are still on their way to the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def unreachable(url: str, seconds: float = ANSWER_SECONDS) -> str:
    """Why no Prefect API answers at `url`, or nothing; to be asked for a password is an answer."""
    unverified = ssl.create_default_context()  # whether it is there, not whom it belongs to
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=seconds, context=unverified):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403) else f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


@contextlib.contextmanager
def temporary_server() -> Iterator[str]:
    """A Prefect server on a free port of this machine, for as long as the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    options = f"--host 127.0.0.1 --port {port} --no-ui"
    command = [sys.executable, "-m", "prefect", "server", "start", *options.split()]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            bound(command),
            # a folder without settings of others: prefect reads .env and prefect.toml where it starts
            cwd=Path(tempfile.gettempdir()),
            env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for(server, url)
            yield url
        except NoServer as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().split("\n")[-1]
            raise NoServer(f"{error} ({said}); `dvc repro` runs the same stages without Prefect") from None
        finally:
            _end(server)


def _wait_for(server: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while unreachable(url, seconds=1):
        if server.poll() is not None:
            raise NoServer(f"the temporary Prefect server ended with code {server.returncode}")
        if time.monotonic() > deadline:
            raise NoServer(f"the temporary Prefect server did not answer within {START_SECONDS} s")
        time.sleep(0.1)


def _end(server: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=5)
            return
