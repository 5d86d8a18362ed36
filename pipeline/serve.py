"""The command `millrace serve`: an OpenAI-compatible server over an export."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.generate import DEVICE, LOOKUP, MODEL, opened
from stages.errors import BadInput

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@MODEL
@click.option("--host", default="127.0.0.1", show_default=True, help="Other addresses need keys.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@DEVICE
@click.option(
    "--rows", type=click.IntRange(1, 4096), help="Requests that run at once. [default: 8 on a CPU, 64 on a GPU]"
)
@click.option(
    "--chunk", type=click.IntRange(16), help="Tokens of prompts read in a step. [default: 256 on a CPU, 1024 on a GPU]"
)
@LOOKUP
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "true", "false", "tuned"]),
    default="auto",
    show_default=True,
    help="The step of a GPU: fewer kernels, half a minute at the first request. auto: true on a GPU, for the "
    "architectures that it serves. A CPU refuses it.",
)
@click.option(
    "--keys", type=click.Path(path_type=Path), help="A file of keys, one a line. [default: MILLRACE_API_KEYS]"
)
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(1), help="Bytes of a body.")
@click.option(
    "--max-waiting", default=256, show_default=True, type=click.IntRange(0), help="Requests in line; more get 429."
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds an answer may take.",
)
@click.option(
    "--drain", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds for what runs, at the end."
)
def serve(
    model: str, host: str, port: int, device: str, rows: int | None, chunk: int | None, lookup: int,
    compiled: str, keys: Path | None, max_body: int, max_waiting: int, timeout: float, drain: float,
) -> None:  # fmt: skip
    """Serves an export by OpenAI's API, with a chat page at /.

    \b
      millrace serve                                   data/export, at http://127.0.0.1:8000
      millrace serve --model models:/millrace@champion the champion of the registry
      MILLRACE_API_KEYS=secret millrace serve --host 0.0.0.0

    With keys, /v1/ wants `Authorization: Bearer KEY` or `X-API-Key: KEY`. On Ctrl-C and SIGTERM running answers are
    finished first. docs/serving.md has the limits and what is measured.
    """
    from serving.app import make_app
    from serving.engine import Engine
    from serving.gate import Limits, read_keys
    from serving.reader import Reader
    from serving.rows import Rows
    from serving.run import listen, run
    from serving.worker import Worker

    known = read_keys(keys)
    if host not in LOOPBACK and not known:
        raise BadInput(f"--host {host} is open to others; set keys with --keys FILE or MILLRACE_API_KEYS")
    socket = listen(host, port)
    exported = opened(model, device)
    on_gpu = exported.device == "cuda"
    rows, chunk = rows or (64 if on_gpu else 8), chunk or (1024 if on_gpu else 256)
    if compiled == "auto":
        compiled = "true" if on_gpu and Rows.serves(exported.model) else "false"
    reader = Reader(exported.model, rows, exported.context_length, compiled)
    worker = Worker(Engine(reader, exported.tokenizer, chunk, lookup), max_waiting)
    limits = Limits(body_bytes=max_body, request_seconds=timeout)
    address = f"http://{host}:{socket.getsockname()[1]}"
    click.echo(f"millrace: serves {exported.name} ({exported.device}) at {address}", err=True)
    run(make_app(exported, worker, known, limits, drain), worker, socket, drain)
