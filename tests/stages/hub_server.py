"""A hub of one dataset that answers as huggingface.co does, on this machine, and remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs

import datasets
import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/name"


class Asked(NamedTuple):
    """A request for the content of a file, and the bytes of it that were wanted."""

    path: str
    bytes: str


class HubServer(ThreadingHTTPServer):
    """Attributes:
    files: the dataset's files by path; those in `git` are small ones, known by git's hash.
    downloads: the requests for contents so far.
    broken: paths that are sent up to this byte, where the connection ends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.git: set[str] = set()
        self.downloads: list[Asked] = []
        self.broken: dict[str, int] = {}
        self.lies: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def entry(self, path: str) -> dict:
        data = self.files[path]
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        described = {"type": "file", "path": path, "size": len(data), "oid": git}
        if path not in self.git:
            described["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return described

    def tree(self, below: str) -> list[dict]:
        inside = [path for path in self.files if not below or path.startswith(f"{below}/")]
        parts = {PurePosixPath(path).parts[: len(PurePosixPath(below).parts) + 1] for path in inside}
        names = ["/".join(part) for part in sorted(parts)]
        folder = {"type": "directory", "size": 0, "oid": "0" * 40}
        return [self.entry(name) if name in self.files else {**folder, "path": name} for name in names]


class Answers(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def reply(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        api, resolve = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in self.server.files]
            found: object = {"_id": "1", "id": NAME, "sha": COMMIT, "siblings": siblings, "tags": []}
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            found = self.server.tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"))
        elif path.startswith(f"{api}/paths-info/{COMMIT}"):
            wanted = parse_qs(body.decode())["paths"]
            found = [self.server.entry(name) for name in wanted if name in self.server.files]
        elif path.startswith(resolve):
            self.content(path.removeprefix(resolve))
            return
        else:
            self.reply(404, b"{}")
            return
        self.reply(200, json.dumps(found).encode()) if found else self.reply(404, b"{}", X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = answer

    def content(self, path: str) -> None:
        if path not in self.server.files:
            self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        data = self.server.lies.get(path, self.server.files[path])
        about = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": COMMIT,
            "Accept_Ranges": "bytes",
        }
        if self.command == "HEAD":
            self.reply(200, b"", **about, Content_Length=str(len(data)))
            return
        wanted = self.headers.get("Range", "")
        self.server.downloads.append(Asked(path, wanted))
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first or 0) : int(last) + 1 if last else None]
        if wanted:
            about["Content_Range"] = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
        if path in self.server.broken:
            self.send_response(206 if wanted else 200)
            for name, value in about.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: max(self.server.broken[path] - int(first or 0), 0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.reply(206 if wanted else 200, part, **about)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[HubServer]:
    """A hub that huggingface_hub and datasets in this process, and its children, ask."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", cache)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", f"{cache}/modules")
        yield server
        server.shutdown()
