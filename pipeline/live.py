"""The page of a training that still runs, for a browser on this machine: what `millrace report --watch` shows.

It is the page that evaluate writes, with the tab of the training alone filled. The browser asks for its charts again
every few seconds, and draws them anew where they are, so a tab that is open stays open and a zoom stays a zoom.

    GET /            the page: style, script and plotly.js are in it
    GET /live.json   {"charts": {..}, "head": "<h1>step 120 ..", "figures": "<table>..", "live": true}

Only this machine can ask (127.0.0.1); from another, forward the port: `ssh -L 8765:127.0.0.1:8765 HOST`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stages.errors import BadInput

SECONDS_BETWEEN = 2.0
LOCAL = ("127.0.0.1", "localhost", "[::1]")
LATER = "<p>This comes after the training: <code>dvc repro</code> goes on with the stage evaluate, which writes it.</p>"
TABS = ("Results", "Training", "Data", "Tokenizer", "Attention", "Embedding", "Samples", "Provenance")
NOTE = "Of very many steps, some are shown; loss.csv has all."


class Server(ThreadingHTTPServer):
    """Answers while `served` is open.

    Attributes:
        asked: when somebody last asked, as time.monotonic has it; 0 before.
        told_end: whether somebody has been told that the training ended.
    """

    daemon_threads = True
    asked = 0.0
    told_end = False

    def __init__(self, folder: Path, port: int, is_running: Callable[[], bool]):
        self.folder, self.is_running = folder, is_running
        self.seen: tuple[bool, float, dict[str, Any]] | None = None
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def state(self, live: bool) -> dict[str, Any]:
        """Of the training, looked up at most a tenth of the time: many steps take seconds to draw, for each tab."""
        if self.seen is None or self.seen[0] != live or time.monotonic() > self.seen[1]:
            begun = time.monotonic()
            found = state(self.folder, live)
            self.seen = (live, begun + 10 * (time.monotonic() - begun), found)
        return self.seen[2]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0]
        if name not in LOCAL:  # a page elsewhere whose name has been pointed to this machine
            self.send_error(403)
            return
        live = self.server.is_running()
        if self.path == "/":
            self.answer(page(self.server.state(live)).encode(), "text/html; charset=utf-8")
        elif self.path == "/live.json":
            self.answer(json.dumps(self.server.state(live), allow_nan=False).encode(), "application/json")
            self.server.told_end |= not live
        elif self.path == "/favicon.ico":  # browsers ask for it unbidden, and complain of an error
            self.answer(b"", "image/x-icon")
        else:
            self.send_error(404)

    def answer(self, content: bytes, kind: str) -> None:
        self.server.asked = time.monotonic()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a tab that was closed meanwhile
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the log of the training is on this screen."""


@contextlib.contextmanager
def served(folder: Path, port: int, is_running: Callable[[], bool]) -> Iterator[Server]:
    """The server of the training in this scratch folder. A browser that looks on is told of the end before it goes.

    Raises:
        BadInput: another program has the port.
    """
    try:
        server = Server(folder, port, is_running)
    except OSError as error:
        raise BadInput(f"--port {port}: {error.strerror}; give another, or none") from error
    with server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield server
            deadline = time.monotonic() + 2 * SECONDS_BETWEEN
            while server.asked > deadline - 4 * SECONDS_BETWEEN and not server.told_end and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            server.shutdown()


def page(found: dict[str, Any]) -> str:
    """The page as it stands now; it asks for what comes."""
    from stages.evaluate.report import assembled
    from stages.evaluate.training_tab import PROBES, SPEEDS, training

    places = dict.fromkeys(["tr-loss", "tr-lr", "tr-norm", *SPEEDS, *(f"tr-{name}" for name in PROBES)])
    named = {title.lower(): (title, LATER) for title in TABS}
    named["training"] = ("Training", training({}, places, NOTE, set(found["charts"])))
    data: dict[str, Any] = {name: [] for name in ("maps", "heads", "scores")}
    data |= {"embedding": {"tokens": []}, "vocabulary": {}, "kinds": {}, "similarity": {}}
    data |= {"charts": found["charts"], "first": "training", "live": SECONDS_BETWEEN if found["live"] else 0}
    return assembled("Training", found["head"], named, data)


def state(folder: Path, live: bool) -> dict[str, Any]:
    """What has changed since the page was made."""
    from stages.evaluate.drawing import number, table
    from stages.evaluate.training_tab import finished_rows, speed_charts, training_charts

    log = (folder / "training.log").read_text(encoding="utf-8", errors="replace").splitlines()  # it is being written
    rows = finished_rows(folder / "loss.csv")
    last = rows[-1] if rows else {"step": "0", "tokens": "0"}
    validations = [row for row in rows if row["validation_loss"]]
    figures = [[name.replace("_", " "), number(float(value))] for name, value in last.items() if value]
    if validations:
        best = min(validations, key=lambda row: float(row["validation_loss"]))
        figures += [["best validation loss", f"{float(best['validation_loss']):.4f} at step {int(best['step']):,}"]]
    ended = "It has ended." if (folder / "metrics.json").exists() else "It was interrupted; the same command goes on."
    said = "It goes on; this page follows." if live else ended
    head = f'<h1>step {int(last["step"]):,}, {int(last["tokens"]):,} tokens</h1><p id="live">{said}</p>'
    return {
        "charts": training_charts(folder) | speed_charts(log),
        "head": head,
        "figures": table([["", ""], *figures]),
        "live": live,
    }
