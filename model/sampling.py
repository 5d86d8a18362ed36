"""Draws the next token: temperature, then top-k, then top-p.

Temperature divides the logits: below 1 sharpens, above 1 flattens, 0 takes the most probable token.
top-k keeps the k most probable; top-p the smallest set of most probable tokens that together have at
least p of what top-k left (nucleus sampling; Holtzman et al., 2019). Example: probabilities 0.5, 0.3,
0.15, 0.05 with top-p 0.8 become 0.625, 0.375, 0, 0. Of equal tokens the one with the lower id comes first.

Every sequence has a generator of its own, so what it becomes does not depend on its company in the
batch. `generate` reads each token once, through caches, until a sequence is longer than the context;
from there on, and for attentions without a cache, it reads the last `context_length` tokens anew.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: top_k 0 and top_p 1 cut nothing off; temperature 0 is greedy.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: temperature and top_k must be at least 0, top_p above 0 and at most 1")


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, float64 [B, V]; rows sum to 1."""
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits_BV.argmax(dim=-1), logits_BV.shape[-1]).double()
    p_BV = (logits_BV / sampling.temperature).softmax(dim=-1)
    if not sampling.top_k and sampling.top_p == 1:
        return p_BV
    ordered, ids = p_BV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    reached = ordered.cumsum(dim=-1)[:, :-1] >= sampling.top_p  # by the tokens up to here: the next is not needed
    ordered[:, 1:][reached] = 0
    kept = torch.zeros_like(p_BV).scatter_(-1, ids, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token id per row, each from its own CPU generator."""
    p_BV = probabilities(logits_BV.cpu(), sampling)
    return [int(torch.multinomial(p_V, 1, generator=g)) for p_V, g in zip(p_BV, generators, strict=True)]


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    context_length: int,
    stop: int,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """Continues every prompt by up to `n_tokens` tokens; a sequence ends before the token `stop`.

    Args:
        prompts: token ids, at least one each; prompt i draws from a generator seeded with seed + i.
        context_length: the model sees at most this many of the last tokens.
    """
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    sequences = [list(prompt) for prompt in prompts]
    reader = CachedReader(model, len(prompts), context_length) if model.has_caches else None
    live = list(range(len(prompts)))
    for _ in range(n_tokens):
        if not live:
            break
        fits = reader is not None and all(len(sequences[i]) <= context_length for i in live)
        if fits:
            assert reader is not None
            logits_BV = reader.next_logits(sequences, live)
        else:
            logits_BV = windowed_logits(model, [sequences[i][-context_length:] for i in live])
        drawn = draw(logits_BV, sampling, [generators[i] for i in live])
        for i, token in zip(live, drawn, strict=True):
            sequences[i].append(token)
        live = [i for i, token in zip(live, drawn, strict=True) if token != stop]
    continuations = [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]
    return [tokens[:-1] if tokens and tokens[-1] == stop else tokens for tokens in continuations]


def windowed_logits(model: Decoder, windows: Sequence[Sequence[int]]) -> Tensor:
    """Logits behind each sequence, read from its start, [B, V]."""
    inputs = nn.utils.rnn.pad_sequence([torch.tensor(w) for w in windows], batch_first=True)
    last = torch.tensor([len(window) - 1 for window in windows])  # causal: padding behind is not seen
    return model(inputs.to(model.embedding.weight.device))[torch.arange(len(windows)), last]


class CachedReader:
    """Reads what is new of growing sequences, and remembers the rest (model/cache.py)."""

    def __init__(self, model: Decoder, n_sequences: int, capacity: int):
        self.model = model
        self.caches = model.new_caches(n_sequences, capacity)
        self.n_read = [0] * n_sequences

    def next_logits(self, sequences: Sequence[Sequence[int]], live: Sequence[int]) -> Tensor:
        """Logits behind each of the live sequences, [live, V]; the others stay as they are."""
        new = [sequences[i][self.n_read[i] :] if i in live else [] for i in range(len(sequences))]
        longest = max(len(tokens) for tokens in new)
        padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in new]
        inputs = torch.tensor(padded, device=self.model.embedding.weight.device)
        lengths = torch.tensor([len(tokens) for tokens in new], device=inputs.device)
        offsets = torch.arange(longest, device=inputs.device)
        real = offsets < lengths[:, None]
        positions = torch.where(real, torch.tensor(self.n_read, device=inputs.device)[:, None] + offsets, 0)
        logits_BTV = self.model.extend(inputs, positions, self.caches, torch.where(real, 0, -1))
        self.n_read = [n + len(tokens) for n, tokens in zip(self.n_read, new, strict=True)]
        return logits_BTV[list(live), (lengths - 1)[list(live)]]
