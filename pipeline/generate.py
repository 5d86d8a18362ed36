"""The command `millrace generate`: continues a text with an export, in this terminal."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from stages.errors import BadInput

if TYPE_CHECKING:
    from serving.engine import Engine
    from serving.request import Piece, Request
    from stages.exported import Exported

MODEL = click.option(
    "--model", default="data/export", show_default=True, help="An export, or models:/millrace@champion."
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
LOOKUP = click.option(
    "--lookup",
    default=0,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Tokens to guess where a text repeats itself: the same text, sooner (measured on CPUs). 0: none.",
)

MOST_SEED = 2**63 - 1  # of torch's generators


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both `generate` and `chat`."""
    for option in reversed(
        [
            click.option("--temperature", default=0.8, show_default=True, help="0: always the most probable token."),
            click.option("--top-p", default=0.95, show_default=True, help="Within the most probable share."),
            click.option("--top-k", default=0, show_default=True, help="Within the k most probable; 0: all."),
            click.option("--min-p", default=0.0, show_default=True, help="At least this share of the most probable."),
            click.option("--repetition-penalty", default=1.0, show_default=True, help="1: none."),
            click.option("--seed", type=click.IntRange(0, MOST_SEED), help="The same seed gives the same text."),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("prompt")
@MODEL
@DEVICE
@click.option("-n", "--max-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--stop", multiple=True, help=r"Ends the text before this string; \n is a new line. Repeatable.")
@LOOKUP
@sampling_options
def generate(prompt: str, model: str, device: str, max_tokens: int, stop: tuple[str, ...], lookup: int,
             seed: int | None, **sampling: Any) -> None:  # fmt: skip
    """Continues PROMPT with an export and prints the text as it comes.

    \b
      millrace generate "Returns the number of"
      millrace generate "Returns the number of" --temperature 0 --stop "\\n" -n 40
      millrace generate "Returns" --seed 7 --model models:/millrace@champion
    """
    from serving.request import Request

    exported = opened(model, device)
    ids = exported.encode(prompt)
    room = exported.context_length - len(ids)
    if room < 1 or not ids:
        raise BadInput(
            f"the prompt has {len(ids)} tokens, the context of {model} {exported.context_length}; shorten it"
        )
    if "" in stop:
        raise BadInput("--stop is empty; name the text before which to end, or leave it out")
    seed = secrets.randbits(32) if seed is None else seed
    ends = tuple(unescaped(text) for text in stop)
    request = Request(tuple(ids), min(max_tokens, room), checked(**sampling), seed, exported.ends, ends)
    click.echo(prompt, nl=False)
    write(engine_of(exported, lookup), request)
    click.echo()


def unescaped(text: str) -> str:
    r"""With \n, \t, \r and \\ read as what they name in a shell's $'..'; any other backslash stays one."""
    named = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: named[found[1]], text)


def opened(model: str, device: str) -> Exported:
    """The export on the device that `execution.device` would be."""
    from stages.execution import Execution
    from stages.exported import open_export

    return open_export(model, Execution(device=device).torch_device())  # type: ignore[arg-type]


def checked(**values: Any) -> Any:
    """The sampling, or which option is out of its range."""
    from model.sampling import Sampling

    try:
        return Sampling(**values)
    except ValueError as error:
        name, space, rest = str(error).partition(" ")
        raise BadInput(f"--{name.replace('_', '-')}{space}{rest}") from None


def engine_of(exported: Exported, lookup: int) -> Engine:
    """An engine for one request at a time.

    Raises:
        BadInput: guesses of this model would change its text.
    """
    from serving.engine import Engine
    from serving.reader import Reader

    return Engine(Reader(exported.model, 1, exported.context_length), exported.tokenizer, lookup=lookup)


def write(engine: Engine, request: Request) -> str:
    """Prints the text as it comes; the whole of it. Ctrl-C ends it."""
    pieces: list[Piece] = []

    def show(piece: Piece) -> None:  # a step that reads a part of a long prompt hands out none
        pieces.append(piece)
        click.echo(piece.text, nl=False)

    running = engine.submit(request, show)
    try:
        while not engine.idle:
            engine.step()
    except KeyboardInterrupt:
        running.cancelled = True
        engine.step()
    if pieces and pieces[-1].finish == "error":
        raise click.ClickException("the engine failed; what it said stands above")
    return "".join(piece.text for piece in pieces)


def ids_that_fit(encode: Callable[[Sequence[Any]], list[int]], messages: list[Any], most: int) -> list[int]:
    """Ids of a conversation without its oldest turns, as far as it would not fit. A question goes with its answer."""
    while len(ids := encode(messages)) > most and len(messages) > 1:
        first = 1 if messages[0]["role"] == "system" and len(messages) > 2 else 0
        del messages[first]
        while len(messages) > first + 1 and messages[first]["role"] == "assistant":
            del messages[first]
    return ids
