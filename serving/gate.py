"""What every HTTP request passes: a request id, the key, the size of its body, and one line of log at its end.

    {"time": "2026-01-31T12:00:00Z", "request": "5f2c..", "method": "POST", "path": "/v1/completions", "status": 200,
     "seconds": 0.413, "prompt_tokens": 12, "tokens": 64}

No text of a prompt or an answer is logged. Keys are compared by their hashes in constant time, and all of them each
time. A body is read up to its limit, and within a time, before anything looks at it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
import hmac
import json
import logging
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import error
from serving.metrics import Metrics
from stages.errors import BadInput

log = logging.getLogger("millrace.serving")
GUARDED = "/v1/"
KEYS = "MILLRACE_API_KEYS"
CLOSE = {"connection": "close"}  # what is left of the body is not read
PATIENCE = 10  # a body so many times too long is read to its end: who still sends cannot hear the refusal
KNOWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        body_bytes: of its body. body_seconds: until it has come in.
        request_seconds: until its answer is complete; what runs longer is cancelled.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    request_seconds: float = 600.0


def read_keys(file: Path | None) -> tuple[str, ...]:
    """The keys that are let in: lines of a file, or the environment's, with commas between. None: everybody is.

    Raises:
        BadInput: the file cannot be read or holds no key.
    """
    if file is None:
        return tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"{file}: {problem}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise BadInput(f"{file}: holds no key; write one on each line")
    return keys


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], limits: Limits, metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        visit = Visit(scope, send, given if KNOWN_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["noted"] = visit.noted
        try:
            if scope["path"].startswith(GUARDED) and not self._let_in(headers):
                await visit.refuse(401, "no valid API key; send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
                                   {"www-authenticate": "Bearer"})  # fmt: skip
            elif (body := await self._body(headers, receive, visit)) is not None:
                await self.app(scope, replayed(body, receive), visit.send)
        except Exception:
            log.exception("request %s failed", visit.id)
            if visit.status:
                raise  # in the midst of an answer: the connection is closed
            await visit.refuse(500, f"internal error; the server's log names it as request {visit.id}")
        finally:
            route = scope.get("route")
            self.metrics.answered(getattr(route, "path", "other"), visit.status)
            visit.log()

    def _let_in(self, headers: dict[str, str]) -> bool:
        if not self.hashes:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        offered = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        offered_hash = hashlib.sha256(offered.encode("latin-1", "replace")).digest()
        return bool(sum([hmac.compare_digest(offered_hash, known) for known in self.hashes]))

    async def _body(self, headers: dict[str, str], receive: Receive, visit: Visit) -> bytes | None:
        """The whole body, or None where the request was refused or its sender has left."""
        most, parts, size = self.limits.body_bytes, [], 0
        declared = headers.get("content-length", "0")
        hopeless = PATIENCE * most
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = not declared.isdigit() or int(declared) <= hopeless
                while more and size <= hopeless:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    parts.append(message.get("body", b""))
                    if size > most:
                        parts.clear()
                    more = message.get("more_body", False)
        except TimeoutError:
            await visit.refuse(408, f"the body did not come in within {self.limits.body_seconds:g} s", CLOSE)
            return None
        if size > most or (declared.isdigit() and int(declared) > most):
            await visit.refuse(413, f"the body is longer than {most:,} bytes", CLOSE)
            return None
        return b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what comes: the sender's leaving."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return first.pop() if first else await receive()

    return next_message


class Visit:
    """One request and what became of it. `noted` is what the application wants in the log."""

    def __init__(self, scope: Scope, send: Send, request_id: str):
        self.scope, self._send, self.id = scope, send, request_id
        self.status, self.begun, self.noted = 0, time.perf_counter(), dict[str, Any]()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(error(status, message)).encode()
        own = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        pairs = [(name.encode(), value.encode()) for name, value in own.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": content})

    def log(self) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        seconds = round(time.perf_counter() - self.begun, 4)
        line = {"time": now, "request": self.id, "method": self.scope["method"], "path": self.scope["path"]}
        log.info(json.dumps({**line, "status": self.status, "seconds": seconds, **self.noted}))
