"""pipeline.scheduling.server: which Prefect API is used, and what happens when none answers."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline.scheduling.server import prefect_api, unreachable


@pytest.fixture
def answering() -> Iterator[str]:
    """A server that answers /401/health with 401, and so on."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(int(self.path.split("/")[1]))

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/api"


def test_a_server_that_asks_for_a_password_is_there_and_one_without_the_api_is_not(answering: str) -> None:
    assert unreachable(f"{answering}/401") == unreachable(f"{answering}/403") == ""
    assert unreachable(f"{answering}/404") == "status 404" and unreachable(f"{answering}/502/") == "status 502"


def test_no_answer_has_a_reason_and_does_not_hang(silent: str, closed: str) -> None:
    assert "timed out" in unreachable(silent, seconds=0.2)
    assert "refused" in unreachable(closed)
    assert unreachable("no address") != ""


def test_the_configured_server_is_used(prefect_server: str) -> None:
    with prefect_api() as url:
        assert url == prefect_server


def test_a_server_that_is_away_is_named_and_replaced(
    prefect_server: str, closed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", closed)
    refresh_global_settings_context()
    monkeypatch.setattr(
        "pipeline.scheduling.server.temporary_server", lambda: nullcontext(prefect_server)
    )  # it costs seconds
    with prefect_api() as url:
        assert url == PREFECT_API_URL.value() == prefect_server
    monkeypatch.undo()
    refresh_global_settings_context()
    said = capsys.readouterr().err
    assert said.startswith(f"millrace: {closed} does not answer (") and said.count("\n") == 1
