"""Runs the decoder for many sequences that have read different numbers of tokens: one row of the caches for each.

    fill(row, tokens, start)    a piece of a prompt; logits behind its last token. fill_rows: pieces of several
    step(tokens, read)          one token for each of the first rows; logits behind each
    guess(tokens, start)        tokens that may be wrong, into the first row; logits behind each
    keep(n)                     the first n of them were right, the others were never there

Rows are dense: when a sequence ends, the last one moves into its row. So a step works on the first rows, as views
without a copy, and reads caches as far as the longest row (in units of LENGTH_UNIT).

A row that is in use but takes part with no token of its own (a prompt that is still being read, or nobody) stands
at its next place: what the step writes there is overwritten by whatever comes next.

On a GPU a step is one CUDA graph for each (rows, length), with rows rounded up to a power of two, since launching
the kernels of a small model takes longer than running them; and it is made of few kernels (rows.py, and for one row
alone.py). Guesses are recorded as well, where no layer has a window. Numbers between matrices in bf16 are fp32 there
(serving/wide.py): so what a request is told beside others is nearer to what it is told alone.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.cache import KeyValueCache, LatentCache
from model.decoder import Decoder
from serving.rows import Rows
from serving.single import Single
from serving.wide import NARROW, can_widen, widen
from stages.errors import BadInput

if TYPE_CHECKING:
    from serving.alone import Alone

log = logging.getLogger("millrace.serving")
Step = Callable[[Tensor, Tensor], Tensor]
LENGTH_UNIT = 64
ASKED_OF_CACHES = ("part", "copy_row", "n_bytes")  # of one's own, too
MOST_APART = 0.1  # of the largest logit; rounding in bf16 comes to 0.02
WARM_UPS = 2  # before a graph is recorded: lazy initialisation must be over


class Reader:
    """A decoder and the caches of `n_rows` sequences of up to `capacity` tokens.

    Args:
        compiled: as for `Rows`; for a GPU, where one row is then read by our own kernels if they serve the decoder.

    Raises:
        BadInput: the model cannot be served, or not in this way.
    """

    def __init__(self, model: Decoder, n_rows: int, capacity: int, compiled: str = "false"):
        if not model.has_caches:
            raise BadInput(
                f"model.layer_pattern {model.config.layer_pattern}: a layer has no method new_cache to serve"
            )
        self.model, self.n_rows, self.capacity = model, n_rows, capacity
        self.device = model.embedding.weight.device
        if compiled != "false" and not Rows.serves(model):
            raise BadInput(
                f"--compile {compiled}: experts, latent attention, matrices in 8 or 4 bits and attention of one's own "
                "take the decoder's own step, which is not compiled; leave it out"
            )
        if compiled != "false" and self.device.type != "cuda":
            raise BadInput(f"--compile {compiled}: a step is compiled on a GPU alone; leave it out on a CPU")
        if self.device.type == "cuda" and can_widen(model):
            widen(model)
        with torch.inference_mode():
            self.caches = model.new_caches(self._rounded(n_rows), capacity)
            for name in ASKED_OF_CACHES:
                if any(not hasattr(cache, name) for cache in self.caches):
                    raise BadInput(
                        f"model.layer_pattern {model.config.layer_pattern}: the cache of a layer has no {name}, which "
                        "serving asks for (docs/serving.md)"
                    )
            self.single = Single(model, self.caches, capacity) if Single.serves(model) else None
        self.overwritten: list[tuple[Tensor, Tensor, Tensor]] = []  # of rings, by the last guesses
        self.graphs: dict[tuple[int, int, bool], Graph] = {}
        # experts in another type than bf16, and packed ones, ask how many tokens each has, which no graph can
        asks = bool(model.config.n_experts) and model.embedding.weight.dtype != torch.bfloat16
        self.use_graphs = self.device.type == "cuda" and not asks
        few = self.use_graphs and Rows.serves(model)
        self.rows = Rows(model, capacity, compiled) if few else None
        self.alone = self._alone(self.rows) if self.rows is not None and compiled != "false" else None

    @property
    def n_bytes(self) -> int:
        return sum(cache.n_bytes for cache in self.caches)

    def fill(self, row: int, tokens: Sequence[int], start: int) -> Tensor:
        """Reads tokens that begin at position `start` into a row. Logits behind the last of them, [V]."""
        return self.fill_rows(row, [tokens], [start])[0]

    @torch.inference_mode()
    def fill_rows(self, row: int, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Reads a piece into each row from `row` on. Logits behind the last token of each, [B, V]."""
        last = torch.tensor([len(piece) - 1 for piece in pieces], device=self.device)
        hidden_BTC = self._read(row, pieces, starts)
        rows = torch.arange(len(pieces), device=self.device)
        return self.model.logits(hidden_BTC[rows, last][:, None])[:, 0]

    @torch.inference_mode()
    def read(self, row: int, piece: Sequence[int], start: int) -> Tensor:
        """Reads tokens that begin at position `start` into a row. The hidden states behind each, [T, C]."""
        return self._read(row, [piece], [start])[0]

    @torch.inference_mode()
    def logits(self, hidden_TC: Tensor) -> Tensor:
        """Of hidden states, [T, V]."""
        return self.model.logits(hidden_TC[None])[0]

    def _read(self, row: int, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """The hidden states behind each token, [B, T, C]; shorter pieces are padded."""
        sizes = [len(piece) for piece in pieces]
        longest = max(sizes)
        length = self._length(max(start + size for start, size in zip(starts, sizes, strict=True)))
        caches = [cache.part(row, row + len(pieces), length) for cache in self.caches]
        inputs = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in pieces]).to(self.device)
        place = torch.arange(longest)
        size_B1, start_B1 = torch.tensor(sizes)[:, None], torch.tensor(starts)[:, None]
        positions = (start_B1 + torch.minimum(place, size_B1 - 1)).to(self.device)
        segments = None if min(sizes) == longest else torch.where(place < size_B1, 0, -1).to(self.device)
        context = self.model.context(inputs, segments, positions, cached=True)
        return self.model.hidden(inputs, context, caches)

    @property
    def takes_back(self) -> bool:
        """Whether wrong guesses leave no trace. What a cache of one's own keeps is not known."""
        return all(type(cache) in (KeyValueCache, LatentCache) for cache in self.caches)

    @property
    def most_guesses(self) -> int:
        """With more, two of them and the token before would have the same slot of a ring."""
        return min([cache.slots.window or self.capacity for cache in self.caches]) - 1

    @torch.inference_mode()
    def guess(self, tokens: Sequence[int], start: int) -> Tensor:
        """Reads tokens into the first row, all but the first of which are guesses. Logits behind each, [T, V]."""
        if self.rows is not None and not any(cache.slots.window for cache in self.caches):  # a ring has no room beside
            return self._replayed(tokens, [start + place for place in range(len(tokens))], shared=True)
        positions = torch.arange(start, start + len(tokens), device=self.device)
        self.overwritten = []
        for cache in self.caches:
            if cache.slots.window:  # what is appended beyond the text is overwritten before anybody reads it
                slots = cache.slots.slot(positions)
                self.overwritten += [(kept, slots, kept[0][:, slots]) for kept in (cache.keys, cache.values)]  # type: ignore[union-attr]
        return self.model.logits(self._read(0, [tokens], [start]))[0]

    @torch.inference_mode()
    def keep(self, n: int) -> None:
        """Puts back what the others of the guesses, behind the first n tokens, have overwritten in rings."""
        for kept, slots, before_KTD in self.overwritten:
            kept[0][:, slots[n:]] = before_KTD[:, n:]
        self.overwritten = []

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], read: Sequence[int]) -> Tensor:
        """One token for each of the first rows, which have read so many before. Logits behind each, [B, V]."""
        if len(tokens) == 1 and self.single is not None:
            return self.single.step(tokens[0], read[0])[None]
        if self.use_graphs:
            return self._replayed(tokens, read)
        caches = [cache.part(0, len(tokens), self._length(max(read) + 1)) for cache in self.caches]
        inputs_B1, positions_B1 = (torch.tensor(some, device=self.device)[:, None] for some in (tokens, read))
        return self.model.extend(inputs_B1, positions_B1, caches)[:, 0]

    def _replayed(self, tokens: Sequence[int], positions: Sequence[int], shared: bool = False) -> Tensor:
        """A step of the graph for so many rows, or tokens of the first row; what is beside them repeats the last one
        of a shared row, and else stands where nothing has been read."""
        beside = self._rounded(len(tokens)) - len(tokens)
        token, position = (tokens[-1], positions[-1]) if shared else (0, 0)
        inputs_B1 = torch.tensor([*tokens, *[token] * beside])[:, None]
        positions_B1 = torch.tensor([*positions, *[position] * beside])[:, None]
        key = self._key(len(inputs_B1), positions, shared)
        while key not in self.graphs:
            try:
                self.graphs[key] = self._graph(*key, inputs_B1, positions_B1)
            except torch.OutOfMemoryError:  # of the machine, not of the kernels
                raise
            except Exception as problem:
                self._give_way(key, problem)
                key = self._key(len(inputs_B1), positions, shared)
        return self.graphs[key].run(inputs_B1, positions_B1)[: len(tokens)]

    def _key(self, n: int, positions: Sequence[int], shared: bool) -> tuple[int, int, bool]:
        """Of a recording; that of our own kernels serves all lengths."""
        alone = self.alone is not None and n == 1 and not shared
        return n, self.capacity if alone else self._length(max(positions) + 1), shared

    def _graph(self, n: int, length: int, shared: bool, inputs: Tensor, positions: Tensor) -> Graph:
        graph = Graph(self._recorded(n, length, shared), inputs, positions, self.device)
        if self.alone is not None and n == 1 and not shared:
            caches = [cache.part(0, 1, length) for cache in self.caches]
            expected = self.model.extend(inputs.to(self.device), positions.to(self.device), caches)[:, 0].float()
            apart = (graph.run(inputs, positions).float() - expected).abs().max() / expected.abs().max()
            if not apart <= MOST_APART:
                raise RuntimeError(f"logits are {float(apart):.2g} of the largest from the decoder's own")
        return graph

    def _give_way(self, key: tuple[int, int, bool], problem: Exception) -> None:
        """Goes on without our own kernels, or without torch.compile, whichever failed; requests that run lose
        nothing."""
        said = f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"
        if self.alone is not None and key[0] == 1 and not key[2]:
            log.warning("--compile: a step by our own kernels failed, torch.compile's serve from now on (%s)", said)
            self.alone = None
        elif self.rows is not None and self.rows.is_compiled:
            log.warning("--compile: the step could not be compiled, it goes on as it is (%s)", said)
            own = (1, self.capacity, False)  # of our own kernels, which have not failed
            self.graphs = {own: self.graphs[own]} if self.alone is not None and own in self.graphs else {}
            self.rows.give_up_compiling()
        else:
            raise problem
        log.debug("--compile: where it failed", exc_info=problem)

    def _recorded(self, n: int, length: int, shared: bool) -> Step:
        if self.rows is None:
            caches = [cache.part(0, n, length) for cache in self.caches]
            return lambda i, p: self.model.extend(i, p, caches)[:, 0]
        if self.alone is not None and n == 1 and not shared:
            return self.alone.step
        rows, whole = self.rows, [cache.part(0, 1 if shared else n, self.capacity) for cache in self.caches]
        return lambda i, p: rows.step(i, p, whole, length, shared)

    def _alone(self, rows: Rows) -> Alone | None:
        """Our own kernels for one row, where this machine and this decoder have them."""
        if self.model.embedding.weight.dtype not in NARROW or importlib.util.find_spec("triton") is None:
            return None
        from serving.alone import Alone

        return Alone(self.model, self.caches, self.capacity, rows.joined) if Alone.serves(self.model) else None

    def move(self, source: int, target: int, read: int) -> None:
        """Gives a sequence that has read so many tokens another row."""
        with torch.inference_mode():
            for cache in self.caches:
                cache.copy_row(source, target, read)

    def _length(self, needed: int) -> int:
        return min(-(-needed // LENGTH_UNIT) * LENGTH_UNIT, self.capacity)

    def _rounded(self, n: int) -> int:
        return 1 << (n - 1).bit_length() if self.device.type == "cuda" else n


class Graph:
    """One step, recorded once and replayed for other tokens. The caches are those of the recording, by address.

    The first steps, before the recording, are those of the tokens at hand: what they write is written again by the
    replay, and is the same.
    """

    def __init__(self, step: Step, inputs: Tensor, positions: Tensor, device: torch.device):
        self.inputs, self.positions = inputs.to(device), positions.to(device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(self.inputs, self.positions)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step(self.inputs, self.positions)

    def run(self, inputs: Tensor, positions: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits
