"""Load on a server: many requests over many connections, some of which behave badly. What leaks, and what fails?

    python -m benchmarks.serving_load                                 1,000 requests over 200 connections
    python -m benchmarks.serving_load --requests 100 --connections 20

Each request is, drawn with a seed: a stream that is read, one that is read slowly, one that is left in the middle, a
whole answer, one that is left before it comes, a body that is too long, or one that makes no sense. The server runs in
this process over an export, so that its engine, its tasks and its memory can be looked at before and after.
Greedy answers are compared with those of the engine alone: under load they must be the same text.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import gc
import json
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import uvicorn

from serving.app import make_app
from serving.engine import Engine
from serving.gate import Limits
from serving.reader import Reader
from serving.request import Request
from serving.run import listen
from serving.worker import Worker
from stages.exported import Exported, open_export

KINDS = {"stream": 40, "slow": 10, "left stream": 15, "whole": 20, "left whole": 5, "too long": 5, "nonsense": 5}
PROMPTS = [
    "Returns the number of",
    "Computes the",
    "A sparse array",
    "If the",
    "The eigenvalues of",
    "x",
    "Notes",
    "é 😀",
]
BODY_BYTES = 100_000


@dataclasses.dataclass
class Outcome:
    """What was seen: answers by kind and what became of them, and what was wrong."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)


def answers_alone(exported: Exported, n_tokens: int) -> dict[str, str]:
    """The greedy continuation of each prompt, with nobody else."""
    engine, found = Engine(Reader(exported.model, 1, exported.context_length), exported.tokenizer), {}
    for prompt in PROMPTS:
        pieces: list = []
        engine.submit(Request(tuple(exported.encode(prompt)), n_tokens, ends=exported.ends), pieces.append)
        while not engine.idle:
            engine.step()
        found[prompt] = "".join(piece.text for piece in pieces)
    return found


async def one(client: httpx.AsyncClient, kind: str, generator: random.Random, right: dict[str, str], n: int,
              outcome: Outcome) -> None:  # fmt: skip
    """One request of a kind; what is wrong is noted."""
    prompt = generator.choice(PROMPTS)
    body = {"prompt": prompt, "max_tokens": n, "temperature": 0}
    while True:
        said = await ask(client, kind, body, generator)
        if said != 429:
            break
        outcome.counts["429, asked again"] += 1
        await asyncio.sleep(0.2 + generator.random())
    outcome.counts[kind] += 1
    wanted: str | int | None = {"too long": 413, "nonsense": 400, "left stream": None, "left whole": None}.get(
        kind, right[prompt]
    )
    if said != wanted:
        outcome.wrong.append(f"{kind}: {said!r} instead of {wanted!r}")


async def ask(client: httpx.AsyncClient, kind: str, body: dict, generator: random.Random) -> str | int | None:
    """The text of an answer, the status of a refusal, or None where we left."""
    if kind == "too long":
        return (await client.post("/v1/completions", json={**body, "prompt": "x" * 2 * BODY_BYTES})).status_code
    if kind == "nonsense":
        return (await client.post("/v1/completions", json={**body, "max_tokens": "many"})).status_code
    if kind == "left whole":
        try:
            await client.post("/v1/completions", json=body, timeout=httpx.Timeout(30, read=0.01))
        except httpx.TimeoutException:
            return None
        return None
    if kind == "whole":
        answer = await client.post("/v1/completions", json=body)
        return answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.status_code
    text = ""
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return answer.status_code
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            text += json.loads(line[6:])["choices"][0]["text"]
            if kind == "left stream" and generator.random() < 0.2:
                return None
            if kind == "slow":
                await asyncio.sleep(0.02)
    return None if kind == "left stream" else text


async def load(address: str, n_requests: int, connections: int, right: dict[str, str], n: int) -> Outcome:
    """All requests, `connections` at a time."""
    generator, outcome = random.Random(0), Outcome()
    kinds = generator.choices(list(KINDS), list(KINDS.values()), k=n_requests)
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    gate = asyncio.Semaphore(connections)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:

        async def bounded(number: int, kind: str) -> None:
            async with gate:
                await one(client, kind, random.Random(number), right, n, outcome)

        await asyncio.gather(*(bounded(number, kind) for number, kind in enumerate(kinds)))
    return outcome


def run(exported: Exported, n_requests: int, connections: int, n_tokens: int, rows: int) -> tuple[Outcome, dict]:
    """The load on a server of this process. Its outcome, and what is left of it afterwards."""
    right = answers_alone(exported, n_tokens)
    worker = Worker(Engine(Reader(exported.model, rows, exported.context_length), exported.tokenizer), 64)
    listening = listen("127.0.0.1", 0)
    app = make_app(exported, worker, (), Limits(body_bytes=BODY_BYTES))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=600))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    process = psutil.Process()
    asyncio.run(load(address, min(n_requests, 50), connections, right, n_tokens))  # what is allocated once
    before = (process.memory_info().rss, process.num_threads())
    begun = time.perf_counter()
    outcome = asyncio.run(load(address, n_requests, connections, right, n_tokens))
    seconds = time.perf_counter() - begun
    end = time.monotonic() + 10
    while (not worker.engine.idle or server.server_state.tasks) and time.monotonic() < end:
        time.sleep(0.05)
    gc.collect()
    left = {
        "running": len(worker.engine.running),
        "waiting": len(worker.engine.waiting),
        "tasks": len(server.server_state.tasks),
        "failures": worker.failures,
        "threads_more": process.num_threads() - before[1],
        "megabytes_more": round((process.memory_info().rss - before[0]) / 1e6, 1),
        "seconds": round(seconds, 1),
    }
    server.should_exit = True
    thread.join(timeout=60)
    left["server_ended"] = not thread.is_alive()
    return outcome, left


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, default=Path("data/export"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rows", type=int, default=32)
    asked = parser.parse_args(arguments)
    exported = open_export(asked.export, asked.device)
    outcome, left = run(exported, asked.requests, asked.connections, asked.tokens, asked.rows)
    print(json.dumps({"answers": dict(outcome.counts), "wrong": outcome.wrong[:10], "left": left}, indent=2))


if __name__ == "__main__":
    main()
