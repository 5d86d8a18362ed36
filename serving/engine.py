"""Runs many requests at once: continuous batching over the rows of one Reader.

Each step reads some prompt, up to `chunk` tokens, oldest request first, and then draws one token for every request
whose prompt has been read. So a long prompt delays running ones by a chunk at most, and who comes joins at once:

    step 1    A reads 256 tokens of its prompt
    step 2    A reads its last 20 and draws; B and C read their prompts, 100 tokens each
    step 3    B and C draw with A

A request is admitted when a row of the caches is free; until then it waits in line. Its prompt is cut at multiples
of `chunk` whoever else runs, and it draws from a generator of its own. So its text depends on nobody, but for
rounding: a product of eight rows may differ from that of one in the last bit, which shows where two tokens are
equally probable to six digits; in 8 and 4 bits, where several rows are multiplied otherwise than one, to three.

With `lookup`, the only one that runs is read several tokens ahead where its text repeats itself (lookup.py), which
changes when its tokens come, and not which.

An error in drawing or describing the token of one request ends that request; others go on.

The engine belongs to one thread (worker.py); it hands pieces to each request's `sink`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.quantised import PackedDecoder
from model.sampling import Counts, Sampling, draw, penalised
from serving.lookup import Lookup
from serving.reader import Reader
from serving.request import Finish, Piece, Request, Token
from serving.text import TextStream
from stages.errors import BadInput
from stages.wording import counted

log = logging.getLogger("millrace.serving")
Sink = Callable[[Piece], None]

SCORED_AT_ONCE = 256  # tokens of a prompt whose logits are held
MOST_PADDED = 1.25  # times the tokens of prompts that are read together


@dataclasses.dataclass(eq=False)
class Running:
    """A request from when it is handed in until its last piece is handed out.

    Attributes:
        arrival: how many were handed in before it.
        counts: what stands in its text, from the first token on, where penalties ask.
        lookup: its text, once it was to be guessed.
        read: how many tokens its row of the caches holds.
        cancelled: set by anybody, seen at the next step.
    """

    request: Request
    sink: Sink
    text: TextStream
    generator: torch.Generator
    arrival: int = 0
    written: list[int] = dataclasses.field(default_factory=list)
    counts: Counts | None = None
    lookup: Lookup | None = None
    read: int = 0
    cancelled: bool = False

    @property
    def draws(self) -> bool:
        """Its prompt has been read."""
        return self.read >= len(self.request.prompt)


class Engine:
    """Requests that wait, and requests that run: `running[i]` has row i.

    Attributes:
        chunk: the most tokens of prompts in a step. lookup: the most tokens that are guessed at once; 0: none.
        guessed, right: how many were guessed so far, and how many of those were right.

    Raises:
        BadInput: guesses are wanted, and a cache cannot take them back, or they would change the text.
    """

    def __init__(self, reader: Reader, tokenizer: Tokenizer, chunk: int = 256, lookup: int = 0):
        self.reader, self.tokenizer, self.chunk = reader, tokenizer, chunk
        if lookup and isinstance(reader.model, PackedDecoder):
            raise BadInput(
                f"--lookup {lookup}: in 8 or 4 bits several rows are multiplied otherwise than one (docs/export.md): "
                "guesses would change the text; leave it out, or open the folder hf"
            )
        if lookup and not reader.takes_back:
            raise BadInput(
                f"--lookup {lookup}: model.layer_pattern {reader.model.config.layer_pattern} has a cache of one's own, "
                "from which no guess can be taken back; leave it out"
            )
        self.lookup = min(lookup, reader.most_guesses) if lookup else 0
        self.guessed = self.right = 0
        self.waiting: collections.deque[Running] = collections.deque()
        self.running: list[Running] = []
        self._arrivals = itertools.count()

    def submit(self, request: Request, sink: Sink) -> Running:
        """Hands a request in; it runs when a row is free.

        Raises:
            ValueError: prompt and continuation do not fit.
        """
        if not request.prompt or request.max_tokens < 0:
            raise ValueError("a request needs a prompt of at least one token, and cannot write less than none")
        if len(request.prompt) + request.max_tokens > self.reader.capacity:
            raise ValueError(
                f"{counted(len(request.prompt), 'token')} of prompt and {request.max_tokens} to write do not fit "
                f"the context of {self.reader.capacity}"
            )
        generator = torch.Generator().manual_seed(request.seed)
        running = Running(request, sink, TextStream(self.tokenizer, request.stop), generator, next(self._arrivals))
        self.waiting.append(running)
        return running

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def cache_use(self) -> float:
        """The share of the caches that holds tokens."""
        return sum(running.read for running in self.running) / (self.reader.n_rows * self.reader.capacity)

    def step(self) -> None:
        """Admits, reads some prompt, and draws a token for each request whose prompt has been read."""
        for running in [running for running in (*self.running, *self.waiting) if running.cancelled]:
            self._end(running, "cancelled")
        while self.waiting and len(self.running) < self.reader.n_rows:
            self.running.append(self.waiting.popleft())
        self._read_prompts()
        drawing = [running for running in self.running if running.draws]
        guesses = self._guesses(drawing[0]) if self.lookup and drawing and len(self.running) == 1 else []
        if guesses:
            self._try(drawing[0], guesses)
        elif drawing:
            read = [running.read for running in self.running]
            last = [running.written[-1] if running.draws else 0 for running in self.running]
            logits_BV = self.reader.step(last, read)
            rows = [row for row, running in enumerate(self.running) if running.draws]
            for running in drawing:
                running.read += 1
            self._draw(drawing, logits_BV if len(rows) == len(last) else logits_BV[rows])

    def _guesses(self, running: Running) -> list[int]:
        """What may come next; never beyond what it may still write."""
        if running.lookup is None:
            running.lookup = Lookup((*running.request.prompt, *running.written))
        for token in running.written[len(running.lookup.tokens) - len(running.request.prompt) :]:
            running.lookup.push(token)
        return running.lookup.guesses(min(self.lookup, running.request.max_tokens - len(running.written) - 1))

    def _try(self, running: Running, guesses: Sequence[int]) -> None:
        """Reads guesses behind the last token, and draws as long as they are right, and once more."""
        logits_TV = self.reader.guess([running.written[-1], *guesses], running.read)
        n_read = 0
        for logits_V, guess in zip(logits_TV, (*guesses, None), strict=True):
            n_read += 1
            running.read += 1
            self._draw([running], logits_V[None])
            if running not in self.running or running.written[-1] != guess:
                break
        self.reader.keep(n_read)
        self.guessed += len(guesses)
        self.right += n_read - 1

    def _read_prompts(self) -> None:
        """Reads up to `chunk` tokens of prompts; whose prompt is through draws a first token."""
        budget = self.chunk
        unread = sorted((running for running in self.running if not running.draws), key=lambda one: one.arrival)
        while group := self._read_together(unread, budget):
            del unread[: len(group)]
            pieces = [self._piece(running) for running in group]
            budget -= sum(map(len, pieces))
            starts = [running.read for running in group]
            row = self.running.index(group[0])
            if group[0].request.scored:
                logits_BV = self._scored(group[0], row, pieces[0])
            else:
                logits_BV = self.reader.fill_rows(row, pieces, starts)
            for running, piece in zip(group, pieces, strict=True):
                running.read += len(piece)
            through = [row for row, running in enumerate(group) if running.draws and running.request.max_tokens]
            if through:
                self._draw([group[row] for row in through], logits_BV[through])
            for running in group:
                if running.draws and not running.request.max_tokens:
                    self._end(running, "length")

    def _scored(self, running: Running, row: int, piece: Sequence[int]) -> Tensor:
        """Reads a piece and hands out what the model thought of its tokens. Logits behind the last of them, [1, V]."""
        request, begin = running.request, running.read
        hidden_TC = self.reader.read(row, piece, begin)
        tokens = [] if begin else [Token(request.prompt[0])]
        foretold = request.prompt[begin + 1 : begin + len(piece) + 1]  # also the first of the next piece
        for first in range(0, len(foretold), SCORED_AT_ONCE):
            some = foretold[first : first + SCORED_AT_ONCE]
            logits_TV = self.reader.logits(hidden_TC[first : first + len(some)])
            tokens += [described(*pair, request.top_logprobs) for pair in zip(some, logits_TV, strict=True)]
        running.sink(Piece("", prompt=tuple(tokens)))
        return self.reader.logits(hidden_TC[-1:])

    def _piece(self, running: Running) -> tuple[int, ...]:
        """What is read next of a prompt: `chunk` tokens or its end, and never less. Who else runs decides no cut."""
        return running.request.prompt[running.read : running.read + self.chunk]

    def _read_together(self, unread: Sequence[Running], budget: int) -> list[Running]:
        """The first of these whose pieces are read in one pass: in rows side by side, of nearly equal lengths."""
        sizes = [len(self._piece(running)) for running in unread]
        if not sizes or sizes[0] > budget:
            return []
        n, row = 1, self.running.index(unread[0])
        if unread[0].request.scored:
            return [unread[0]]
        while (
            n < len(sizes)
            and not unread[n].request.scored
            and row + n < len(self.running)
            and self.running[row + n] is unread[n]
        ):
            some = sizes[: n + 1]
            if sum(some) > budget or max(some) * len(some) > MOST_PADDED * sum(some):
                break
            n += 1
        return [*unread[:n]]

    def _draw(self, drawing: Sequence[Running], logits_BV: Tensor) -> None:
        """One token for each of these, handed out."""
        by_sampling: dict[Sampling, list[int]] = {}
        for row, running in enumerate(drawing):
            by_sampling.setdefault(running.request.sampling, []).append(row)
        drawn: list[int | None] = [None] * len(drawing)
        for rows in by_sampling.values():
            wanted = logits_BV if len(rows) == len(drawing) else logits_BV[rows]
            for row, token in zip(rows, tokens_of([drawing[row] for row in rows], wanted), strict=True):
                drawn[row] = token
        for running, token, logits_V in zip(drawing, drawn, logits_BV, strict=True):
            self._hand_out(running, token, logits_V)

    def _hand_out(self, running: Running, drawn: int | None, logits_V: Tensor) -> None:
        """Gives a drawn token, as text, to whoever asked; ends the request where it is to end, and one that has no
        token or whose token raises an error."""
        request = running.request
        if drawn is None:
            self._end(running, "error")
            return
        running.written.append(drawn)
        if running.counts is not None:
            running.counts.write(drawn)
        try:
            token = described(drawn, logits_V, request.top_logprobs)
            text = "" if drawn in request.ends else running.text.push(drawn)
        except Exception:
            log.exception("a token could not be described; its request is ended")
            self._end(running, "error")
            return
        if drawn in request.ends:
            self._end(running, "stop")
        elif running.text.stopped:
            self._end(running, "stop", text, token)
        elif len(running.written) == request.max_tokens:
            self._end(running, "length", text, token)
        else:
            running.sink(Piece(text, (token,)))

    def _end(self, running: Running, finish: Finish, text: str = "", token: Token | None = None) -> None:
        """Hands out the last piece and frees the row: the last one moves into it."""
        if running in self.running:
            row, last = self.running.index(running), len(self.running) - 1
            if row != last:
                self.reader.move(last, row, self.running[last].read)
                self.running[row] = self.running[last]
            self.running.pop()
        else:
            self.waiting.remove(running)
        rest = "" if finish == "error" else running.text.finish()
        if running.text.stopped and finish == "length":
            finish = "stop"
        running.sink(Piece(text + rest, () if token is None else (token,), finish))

    def fail(self) -> None:
        """Ends everything that runs or waits, after an error that nobody foresaw. It touches no row and no text:
        what raised once may raise again, and everybody must hear of the end."""
        ended, self.running = self.running, []
        while self.waiting:  # one by one: others hand in meanwhile
            ended.append(self.waiting.popleft())
        for running in ended:
            try:
                running.sink(Piece("", (), "error"))
            except Exception:
                log.exception("nobody could be told that a request has ended")


def tokens_of(drawing: Sequence[Running], logits_BV: Tensor) -> list[int | None]:
    """A token for each of these, which share their sampling; None for one whose drawing raises an error."""
    sampling = drawing[0].request.sampling
    wanted_BV = logits_BV
    try:
        if sampling.has_penalties:
            pairs = zip(logits_BV, drawing, strict=True)
            wanted_BV = torch.stack([penalised(V, sampling, counts_of(r, V)) for V, r in pairs])
        return [*draw(wanted_BV, sampling, [running.generator for running in drawing])]
    except Exception:
        if len(drawing) > 1:  # whose fault it is shows one by one
            return [tokens_of([running], logits_BV[row][None])[0] for row, running in enumerate(drawing)]
        log.exception("a token could not be drawn; its request is ended")
        return [None]


def counts_of(running: Running, logits_V: Tensor) -> Counts:
    if running.counts is None:
        running.counts = Counts(running.request.prompt, len(logits_V), logits_V.device)
    return running.counts


def described(token: int, logits_V: Tensor, top_logprobs: int | None) -> Token:
    """A drawn token with what the model thought of it and of others, if that was asked for."""
    if top_logprobs is None:
        return Token(token)
    logprobs_V = logits_V.double().log_softmax(dim=-1)
    values, ids = logprobs_V.topk(min(top_logprobs, len(logprobs_V)))
    return Token(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
