"""The command `millrace chat`: a conversation with an export, in this terminal."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

import click

from pipeline.generate import (
    DEVICE,
    LOOKUP,
    MODEL,
    MOST_SEED,
    checked,
    engine_of,
    ids_that_fit,
    opened,
    sampling_options,
    write,
)
from stages.errors import BadInput

HELP = "/temp T  /top_p P  /seed N (or: off)  /system TEXT  /reset  /quit"


@click.command()
@MODEL
@DEVICE
@click.option("-n", "--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Of one answer.")
@click.option("--system", default="", help="What the model is told before anything else.")
@LOOKUP
@sampling_options
def chat(
    model: str, device: str, max_tokens: int, system: str, lookup: int, seed: int | None, **sampling: Any
) -> None:  # fmt: skip
    """A conversation with an export. /quit or Ctrl-D ends it, Ctrl-C an answer.

    /temp 0.2, /top_p 0.9 and /seed 7 change how it draws, /system what it is told, /reset forgets what was said.
    When the conversation outgrows the context its oldest turns are left out.
    """
    exported = opened(model, device)
    if not exported.template:
        raise BadInput(f"{model}: no chat template and no <|im_start|> in its tokenizer; use `millrace generate`")
    talk = Talk(exported, checked(**sampling), seed, max_tokens, lookup)
    talk.begin(system)
    click.echo(f"{exported.name}, context {exported.context_length}. {HELP}")
    click.echo("A model that was never taught to converse continues text; `millrace generate` shows it at its best.")
    while True:
        try:
            line = click.prompt(">", prompt_suffix=" ", default="", show_default=False).strip()
        except click.Abort:
            click.echo()
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            click.echo(talk.command(*line[1:].partition(" ")[::2]))
        elif line:
            talk.say(line)


def within(value: str, most: float) -> float:
    """A number from 0 to `most`.

    Raises:
        ValueError: it is none, with a sentence.
    """
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"must be a number from 0 to {most:g}, not {value!r}")
    return number


class Talk:
    """What was said, and how the next answer is drawn."""

    def __init__(self, exported: Any, sampling: Any, seed: int | None, max_tokens: int, lookup: int):
        self.exported, self.engine = exported, engine_of(exported, lookup)
        self.sampling, self.seed, self.max_tokens = sampling, seed, max_tokens
        self.messages: list[dict[str, str]] = []

    def begin(self, system: str) -> None:
        self.messages = [{"role": "system", "content": system}] if system else []

    def command(self, name: str, value: str) -> str:
        """Does what stands behind a slash; what to print about it."""
        try:
            if name == "temp":
                self.sampling = dataclasses.replace(self.sampling, temperature=within(value, 2))
            elif name == "top_p":
                self.sampling = dataclasses.replace(self.sampling, top_p=within(value, 1))
            elif name == "seed":
                self.seed = None if value == "off" else int(within(value, MOST_SEED))
            elif name in ("system", "reset"):
                self.begin(value)
            else:
                return HELP
        except ValueError as error:
            return f"{error}"
        return f"temperature {self.sampling.temperature:g}, top_p {self.sampling.top_p:g}, seed {self.seed}"

    def say(self, line: str) -> None:
        """Answers, and remembers both."""
        from serving.request import Request

        self.messages.append({"role": "user", "content": line})
        length = self.exported.context_length
        most = min(self.max_tokens, length // 2)
        ids = ids_that_fit(self.exported.encode_chat, self.messages, length - most)
        if len(ids) > length - most:
            self.messages.pop()
            click.echo(f"that is {len(ids)} tokens; {length - most} fit")
            return
        seed = secrets.randbits(32) if self.seed is None else self.seed
        text = write(self.engine, Request(tuple(ids), most, self.sampling, seed, self.exported.ends))
        click.echo()
        self.messages.append({"role": "assistant", "content": text})
