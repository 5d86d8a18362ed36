"""The HTTP application: OpenAI's completions and chat completions over one export.

    POST /v1/completions, /v1/chat/completions    GET /v1/models    with a key, where keys are set
    GET /    the chat page    /health    /metrics    /docs

A body goes through `serving/bodies.py`, becomes requests of the engine, and their pieces become an answer
(`serving/answers.py`), at once or as server-sent events. Whoever leaves frees his rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from serving.answers import DONE, Answer, Kind, Refused, TokenTexts, error, event
from serving.bodies import MOST_CHOICES, Body, ChatBody, CompletionBody, unknown_key
from serving.choices import Choices
from serving.gate import Gate, Limits
from serving.metrics import Metrics
from serving.request import Piece, Request
from serving.worker import Busy, Down, Worker
from stages.exported import Exported, NoTemplate
from stages.wording import counted

PAGE = Path(__file__).with_name("page.html")
DEFAULT_TOKENS = 128  # of a text completion that says nothing; OpenAI's 16 is a surprise to most


def make_app(
    exported: Exported, worker: Worker, keys: tuple[str, ...] = (), limits: Limits | None = None,
    drain_seconds: float = 30.0,
) -> FastAPI:  # fmt: skip
    """The application. Its lifespan starts the worker and, at the end, lets what runs be finished."""
    limits = limits or Limits()
    metrics = Metrics(exported.name, worker)
    service = Service(exported, worker, metrics, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop, drain_seconds)

    app = FastAPI(title="Millrace", description="Text from an export, by OpenAI's API.", lifespan=lifespan)
    app.add_middleware(Gate, keys=keys, limits=limits, metrics=metrics)
    add_routes(app, service)
    add_errors(app)
    return app


def add_routes(app: FastAPI, service: Service) -> None:
    shapes: dict[int | str, dict[str, Any]] = {
        status: {"description": about}
        for status, about in ((400, "a value that cannot be taken"), (401, "no valid key"), (404, "no such model"),
                              (413, "too long a body"), (429, "too many requests wait"),
                              (503, "the engine has ended"), (504, "took too long"))
    }  # fmt: skip

    @app.post("/v1/completions", responses=shapes)
    async def completions(body: CompletionBody, http: HttpRequest) -> Response:
        return await service.complete(body, http)

    @app.post("/v1/chat/completions", responses=shapes)
    async def chat_completions(body: ChatBody, http: HttpRequest) -> Response:
        return await service.chat(body, http)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card]}

    @app.get("/v1/models/{name:path}", responses={404: shapes[404]})
    async def model(name: str) -> dict[str, Any]:
        service.check_name(name)
        return service.card

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.worker.alive
        return JSONResponse(
            {"status": "ok" if alive else "down", "model": service.exported.name}, 200 if alive else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))


def add_errors(app: FastAPI) -> None:
    """Every error has OpenAI's shape."""

    @app.exception_handler(Refused)
    async def refused(_: HttpRequest, problem: Refused) -> JSONResponse:
        headers = {"retry-after": "1"} if problem.status == 429 else None
        return JSONResponse(problem.content, problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        place = place_of(first)
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = unknown_key(str(first["loc"][-1]), first["loc"], http.url.path)
        return JSONResponse(error(400, f"{place or 'body'}: {said}", place), 400)

    @app.exception_handler(HTTPException)
    async def http_error(_: HttpRequest, problem: HTTPException) -> JSONResponse:
        return JSONResponse(error(problem.status_code, str(problem.detail)), problem.status_code, problem.headers)


def place_of(problem: Mapping[str, Any]) -> str | None:
    """The key of the body that is wrong; pydantic's place goes on with the branch of the schema that it tried."""
    if problem["type"] == "json_invalid":
        return None
    place = [str(part) for part in problem["loc"][1:]]
    return ".".join(itertools.takewhile(lambda part: "[" not in part and "(" not in part, place)) or None


class Service:
    """Bodies in, answers out."""

    def __init__(self, exported: Exported, worker: Worker, metrics: Metrics, limits: Limits):
        self.exported, self.worker, self.metrics, self.limits = exported, worker, metrics, limits
        self.texts = TokenTexts(exported.tokenizer)
        self.card = {"id": exported.name, "object": "model", "created": 0, "owned_by": "millrace",
                     "max_model_len": exported.context_length}  # fmt: skip

    def check_name(self, name: str) -> None:
        if name not in ("", self.exported.name):
            raise Refused(404, f"model {name!r} is not here; this server has {self.exported.name!r}", "model",
                          "model_not_found")  # fmt: skip

    async def complete(self, body: CompletionBody, http: HttpRequest) -> Response:
        self.check_name(body.model)
        if body.best_of not in (None, body.n or 1):
            raise Refused(400, "best_of: only that of n is supported; leave it out", "best_of")
        if body.echo and body.stream:
            raise Refused(400, "echo: not with stream; leave one of them out", "echo")
        given, n = body.prompts(), body.n or 1
        if not 0 < len(given) * n <= MOST_CHOICES:  # before any of them is encoded
            raise Refused(
                400, f"prompt: {len(given)} prompts of n {n}; one request may have 1 to {MOST_CHOICES}", "prompt"
            )
        self.refuse_hopeless("prompt", *(prompt for prompt in given if isinstance(prompt, str)))
        prompts = [await self._ids(prompt) for prompt in given]
        texts = [await self._text(prompt) if body.echo else "" for prompt in given]
        before = [text for text in texts for _ in range(n)]
        scored = bool(body.echo) and body.logprobs is not None
        return await self._answer("text", body, prompts, body.max_tokens, body.logprobs, before, http, scored=scored)

    async def chat(self, body: ChatBody, http: HttpRequest) -> Response:
        self.check_name(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise Refused(400, "top_logprobs: needs logprobs: true", "top_logprobs")
        roles = {"developer": "system"}
        said = [{"role": roles.get(one.role, one.role), "content": str(one.content)} for one in body.messages]
        self.refuse_hopeless("messages", "".join(one["content"] for one in said))
        try:
            prompt = await asyncio.to_thread(self.exported.encode_chat, said)
        except NoTemplate as problem:
            raise Refused(400, str(problem), "messages") from None
        top = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        return await self._answer("chat", body, [prompt], most, top, [""] * (body.n or 1), http, all_that_fits=True)

    def refuse_hopeless(self, field: str, *texts: str) -> None:
        """Refuses texts that cannot fit before they are encoded, which takes a second a megabyte."""
        if any(len(text) > self.exported.most_characters for text in texts):
            length = self.exported.context_length
            raise Refused(400, f"the context is {length} tokens, and this is more in any case; shorten it", field,
                          "context_length_exceeded")  # fmt: skip

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await asyncio.to_thread(self.exported.encode, prompt)
        if not prompt or max(prompt) >= self.exported.model.vocab_size:
            raise Refused(
                400, f"prompt: token ids must be below {self.exported.model.vocab_size}, at least one", "prompt"
            )
        return prompt

    async def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else await asyncio.to_thread(self.exported.tokenizer.decode, prompt)

    def _requests(
        self, body: Body, prompts: Sequence[list[int]], most: int | None, top: int | None, all_that_fits: bool,
        scored: bool,
    ) -> list[Request]:  # fmt: skip
        """The requests of a body, n for each prompt; prompts and what is to be written must fit the context."""
        n, length = body.n or 1, self.exported.context_length
        seed = secrets.randbits(32) if body.seed is None else body.seed
        requests: list[Request] = []
        for prompt in prompts:
            room = length - len(prompt)
            wanted = most if most is not None else room if all_that_fits else min(DEFAULT_TOKENS, room)
            if wanted > room or (room < 1 and most != 0):
                asked = f"{counted(len(prompt), 'token')} of prompt" + (f" and {most} to write" if most else "")
                raise Refused(400, f"the context is {length} tokens, and this asks for {asked}; shorten it",
                              "max_tokens" if room > 0 else "prompt", "context_length_exceeded")  # fmt: skip
            first = Request(
                tuple(prompt), wanted, body.sampling(), seed, self.exported.ends, tuple(body.stop), top, scored
            )
            requests += [dataclasses.replace(first, seed=seed + number) for number in range(n)]
        return requests

    async def _answer(
        self, kind: Kind, body: Body, prompts: Sequence[list[int]], most: int | None, top: int | None,
        before: Sequence[str], http: HttpRequest, all_that_fits: bool = False, scored: bool = False,
    ) -> Response:  # fmt: skip
        requests = self._requests(body, prompts, most, top, all_that_fits, scored)
        answer = Answer(kind, self.exported.name, sum(map(len, prompts)), self.texts, top)
        noted = http.scope["state"]["noted"]
        noted["prompt_tokens"] = answer.prompt_tokens
        try:
            choices = Choices(self.worker, self.metrics, requests, self.limits.request_seconds)
        except Down as problem:
            raise Refused(503, str(problem)) from None
        except Busy as problem:
            raise Refused(429, str(problem), code="queue_full") from None
        if body.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            events = self._events(answer, choices, body.wants_usage, noted)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return await self._whole(answer, choices, before, http, noted)

    async def _events(
        self, answer: Answer, choices: Choices, wants_usage: bool, noted: dict[str, Any]
    ) -> AsyncIterator[str]:
        """The stream. Where its reader leaves, it is closed here, and what runs is cancelled."""
        try:
            for chunk in answer.opening(len(choices.requests)):
                yield event(chunk)
            async with contextlib.aclosing(choices.pieces()) as pieces:
                async for index, piece in pieces:
                    if piece.finish in ("error", "cancelled"):
                        yield event(error(500, "the engine failed; try again"))
                        return
                    answer.completion_tokens += len(piece.tokens)
                    if piece.text or piece.finish or (piece.tokens and answer.top_logprobs is not None):
                        yield event(answer.chunk(index, piece))
            if wants_usage:
                yield event(answer.last_chunk())
            yield DONE
        except TimeoutError:
            yield event(error(504, f"the answer took longer than {self.limits.request_seconds:g} s"))
        finally:
            choices.cancel()
            noted["tokens"] = answer.completion_tokens

    async def _whole(
        self, answer: Answer, choices: Choices, before: Sequence[str], http: HttpRequest, noted: dict[str, Any]
    ) -> Response:
        collected: list[list[Piece]] = [[] for _ in choices.requests]

        async def collect() -> None:
            async with contextlib.aclosing(choices.pieces()) as pieces:
                async for index, piece in pieces:
                    if piece.finish in ("error", "cancelled"):
                        raise Refused(500, "the engine failed; try again")
                    answer.completion_tokens += len(piece.tokens)
                    collected[index].append(piece)

        try:
            if not await unless_left(collect, http):
                return Response(status_code=499)  # nobody reads it
        except TimeoutError:
            raise Refused(504, f"the answer took longer than {self.limits.request_seconds:g} s") from None
        finally:
            choices.cancel()
            noted["tokens"] = answer.completion_tokens
        return JSONResponse(answer.whole(collected, before))


async def unless_left(work: Callable[[], Awaitable[None]], http: HttpRequest) -> bool:
    """Does the work unless the client leaves before; whether it was done."""

    async def left() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work()), asyncio.ensure_future(left())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        doing.result()
        return True
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)
