"""What each attention head looks at, in numbers that are means over queries of test text.

They are taken from the very probabilities that the model uses (watching.py), for every kind of attention.
Positions count within a document's segment; the first query of a segment, which can only see itself, is
left out.

    entropy     -sum p ln p, in nats: 0 for one key, ln 8 = 2.08 for eight keys alike
    distance    mean of i - j: how far back it looks, in tokens
    sink        probability on the first `sink_tokens` positions, over queries behind them
    first       probability on the first position of the segment
    previous    probability on the token before
    duplicate   probability on earlier occurrences of the same token, over queries that see one
    induction   probability on tokens that came after an earlier occurrence of the same token, likewise

Example for the last two, with tokens a b c a and the query at the second a: the key at the first a is the
duplicate, the key at b is the induction target, since b came after a (Olsson et al., 2022, In-context
learning and induction heads). Real text repeats itself for many reasons; so the same score is taken on
random tokens that are read twice (`repeated`), where nothing but the repetition tells what comes next.

Heads of a layer are compared by the cosine of their probabilities, over all queries and keys alike: 1 for
two heads that look at the same, about 0 for two that never do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.perplexity import to_tensors
from stages.tokens import Batch, TokenRows
from stages.watching import Block, watch

if TYPE_CHECKING:
    from torch import Tensor

    from model.decoder import Decoder

SCORES = ("entropy", "distance", "sink", "first", "previous", "induction", "duplicate")
TOKENS_AT_ONCE = 4096
REPEATED = 64  # random tokens that are read twice
REPEATED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Heads:
    """What all heads do.

    Attributes:
        scores: {layer, head, kind, SCORES, repeated, nearest, similarity} of each head, layers and heads from 0.
        similarity: by layer, the cosine of each head with each other, [H][H].
    """

    scores: list[dict[str, Any]]
    similarity: dict[int, list[list[float]]]


def head_scores(model: Decoder, rows: TokenRows, max_tokens: int, device: str, seed: int = 0) -> Heads:
    """Reads the first rows of the split, at most `max_tokens` slots.

    Heads of an attention of one's own that does not call `attend` are not listed.
    """
    slots = min(rows.context_length, max_tokens)
    n_rows = min(rows.n_rows, max(1, max_tokens // slots))
    step = max(1, TOKENS_AT_ONCE // slots)
    batches = (
        first_slots(rows.batch(np.arange(first, min(first + step, n_rows))), slots) for first in range(0, n_rows, step)
    )
    real = tally(model, batches, device)
    repeated = tally(model, [repeated_tokens(rows.vocab_size, rows.context_length, seed)], device)
    means, of_repeated = real.means(), repeated.means()[SCORES.index("induction")]
    cosine = real.cosine()
    entries = []
    for layer, head in itertools.product(real.layers, range(model.config.n_heads)):
        others = np.where(np.arange(model.config.n_heads) == head, -1.0, cosine[layer, head])
        entry = {"layer": layer, "head": head, "kind": model.config.kinds[layer]}
        entry |= {name: round(float(means[s, layer, head]), 6) for s, name in enumerate(SCORES)}
        entry |= {"repeated": round(float(of_repeated[layer, head]), 6)}
        if len(others) > 1:
            entry |= {"nearest": int(others.argmax()), "similarity": round(float(others.max()), 6)}
        entries.append(entry)
    return Heads(entries, {layer: cosine[layer].round(4).tolist() for layer in real.layers})


def tally(model: Decoder, batches: Iterable[Batch], device: str) -> Tally:
    """Watches the model read these rows."""
    import torch

    tally = Tally(len(model.blocks), model.config.n_heads, max(1, model.config.sink_tokens))
    for batch in batches:
        inputs, _, segments, positions = to_tensors(batch, device)
        with torch.inference_mode():
            tally.read(inputs, segments, positions)
            tally.layers = watch(model, inputs, segments, positions, tally.look)
    return tally


class Tally:
    """Sums of all scores over their queries, and of the products of any two heads of a layer."""

    def __init__(self, n_layers: int, n_heads: int, sinks: int):
        self.sums = np.zeros((len(SCORES), n_layers, n_heads))
        self.counts = np.zeros((len(SCORES), n_layers, 1))
        self.products = np.zeros((n_layers, n_heads, n_heads))
        self.sinks = sinks
        self.layers: list[int] = []

    def read(self, inputs: Tensor, segments: Tensor, positions: Tensor) -> None:
        """The rows that are looked at from now on, int64 [B, T] each."""
        import torch

        self.inputs, self.positions, self.real = inputs, positions, segments >= 0
        before = torch.full_like(inputs, -1)
        before[:, 1:] = inputs[:, :-1]
        self.before = before.masked_fill_((positions == 0) | ~self.real, -1)  # the token before each key, if any

    def look(self, block: Block) -> None:
        """Adds a block of queries."""
        queries, keys, p = block.queries, block.keys, block.p
        positions = self.positions[:, queries]
        real = self.real[:, queries]
        counted = real & (positions > 0)
        earlier = block.seen & (keys < queries[:, None]) & real[:, :, None]
        token = self.inputs[:, queries, None]
        masses = [
            self._mass_at(block, queries - positions, self.sinks),
            self._mass_at(block, queries - positions, 1),
            self._mass_at(block, (queries - 1).expand_as(positions), 1),
        ]
        distance = (queries - queries[0]) - p @ (keys - queries[0]).to(p.dtype)
        per_query = [-(p * block.log_p).sum(dim=-1), distance, *masses]
        behind = real & (positions >= self.sinks)
        for score, (values, which) in enumerate(
            zip(per_query, (counted, counted, behind, counted, counted), strict=True)
        ):
            self._add(score, block.layer, (values * which[:, None]).double().sum(dim=(0, 2)), which.sum())
        for name, keyed_by in (("induction", self.before), ("duplicate", self.inputs)):
            hits = earlier & (keyed_by[:, None, keys] == token)
            row, query, key = hits.nonzero(as_tuple=True)
            mass = p[row, :, query, key].double().sum(dim=0)
            self._add(SCORES.index(name), block.layer, mass, hits.any(dim=-1).sum())
        looks = (p * counted[:, None, :, None]).flatten(2)
        self.products[block.layer] += (looks @ looks.transpose(-1, -2)).double().sum(dim=0).cpu().numpy()

    def _mass_at(self, block: Block, slots_BQ: Tensor, width: int) -> Tensor:
        """The probability on `width` slots from these on, [B, H, Q]; 0 on slots that are not among the keys."""
        import torch

        wanted = slots_BQ[:, :, None] + torch.arange(width, device=slots_BQ.device)
        place = torch.searchsorted(block.keys, wanted).clamp_(max=len(block.keys) - 1)
        there = block.keys[place] == wanted
        p = block.p.gather(-1, place[:, None].expand(-1, block.p.shape[1], -1, -1))
        return (p * there[:, None]).sum(dim=-1)

    def _add(self, score: int, layer: int, sums_H: Tensor, count: Tensor) -> None:
        self.sums[score, layer] += sums_H.cpu().numpy()
        self.counts[score, layer] += int(count)

    def means(self) -> np.ndarray:
        """[scores, layers, heads]; 0 where no query counted."""
        return self.sums / np.maximum(self.counts, 1)

    def cosine(self) -> np.ndarray:
        """[layers, heads, heads]."""
        norms = np.sqrt(np.maximum(np.diagonal(self.products, axis1=1, axis2=2), 1e-300))
        return self.products / norms[:, :, None] / norms[:, None, :]


def repeated_tokens(vocab_size: int, context_length: int, seed: int) -> Batch:
    """Rows of different random tokens, each read twice: a b c a b c. The label of a slot is the next input."""
    length = max(1, min(REPEATED, context_length // 2, vocab_size))
    generator = np.random.default_rng(seed)
    once = np.stack([generator.permutation(vocab_size)[:length] for _ in range(REPEATED_ROWS)])
    inputs = np.concatenate((once, once), axis=1)
    positions = np.tile(np.arange(2 * length), (REPEATED_ROWS, 1))
    return Batch(inputs, np.roll(inputs, -1, axis=1), np.zeros_like(inputs), positions)


def first_slots(batch: Batch, slots: int) -> Batch:
    """Attention is causal: what stands first in a row does not depend on the rest."""
    return Batch(*(array[:, :slots] for array in (batch.inputs, batch.labels, batch.segments, batch.positions)))
