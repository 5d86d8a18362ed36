"""Draws the next token: penalties, then temperature, then top-k, top-p and min-p.

Temperature divides the logits: below 1 sharpens, above 1 flattens, 0 takes the most probable token.
top-k keeps the k most probable; top-p the smallest set of most probable tokens that together have at
least p of what top-k left (nucleus sampling; Holtzman et al., 2019). Example: probabilities 0.5, 0.3,
0.15, 0.05 with top-p 0.8 become 0.625, 0.375, 0, 0. min-p cuts off what has less than that share of the most
probable token: 0.25 keeps 0.5, 0.3 and 0.15 of them. Of equal tokens the one with the lower id comes first.

Penalties are for tokens that stand in the text. repetition_penalty r divides their logits where positive and
multiplies them elsewhere (Keskar et al., 2019), the prompt's too; of tokens written so far, presence_penalty
is taken from the logit once and frequency_penalty once for each time.

Every sequence has a generator of its own, so what it becomes does not depend on its company in the
batch. `generate` reads each token once, through caches, until a sequence is longer than the context;
from there on, and for attentions without a cache, it reads the last `context_length` tokens anew.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: top_k 0, top_p 1 and min_p 0 cut nothing off; temperature 0 is greedy.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, wrong, range in (
            ("temperature", not 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k < 0, "at least 0; 0 cuts nothing off"),
            ("top_p", not 0 <= self.top_p <= 1, "at least 0, which leaves the most probable, and at most 1"),
            ("min_p", not 0 <= self.min_p <= 1, "at least 0 and at most 1"),
            ("repetition_penalty", not 0.01 <= self.repetition_penalty < math.inf, "at least 0.01; 1 is none"),
            ("presence_penalty", not abs(self.presence_penalty) <= 2, "within -2 and 2"),
            ("frequency_penalty", not abs(self.frequency_penalty) <= 2, "within -2 and 2"),
        ):
            if wrong:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {range}")

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)


class Counts:
    """Which tokens stand in a text, and how often each was written behind its prompt: what penalties ask.

    Kept while the text grows, so that a token costs the same however long the text is.
    """

    def __init__(self, prompt: Sequence[int], vocab_size: int, device: torch.device | str = "cpu"):
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen_V[torch.tensor([*prompt], dtype=torch.int64, device=device)] = True
        self.times_V = torch.zeros(vocab_size, dtype=torch.float64, device=device)

    def write(self, token: int) -> None:
        self.seen_V[token] = True
        self.times_V[token] += 1


def penalised(logits_V: Tensor, sampling: Sampling, counts: Counts) -> Tensor:
    """Logits behind a prompt and what was written so far; in float64, where a penalty leaves them finite."""
    if not sampling.has_penalties:
        return logits_V
    logits_V, penalty = logits_V.double(), sampling.repetition_penalty
    changed_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    logits_V = torch.where(counts.seen_V, changed_V, logits_V)
    times_V = counts.times_V
    return logits_V - sampling.frequency_penalty * times_V - sampling.presence_penalty * (times_V > 0)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, float64 [B, V]; rows sum to 1. Penalties have been applied."""
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits_BV.argmax(dim=-1), logits_BV.shape[-1]).double()
    below_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)  # at most 0: no temperature makes infinity of it
    p_BV = (below_BV / sampling.temperature).softmax(dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        ordered, ids = p_BV.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k:
            ordered[:, sampling.top_k :] = 0
            ordered /= ordered.sum(dim=-1, keepdim=True)
        reached = ordered.cumsum(dim=-1)[:, :-1] >= sampling.top_p  # by the tokens up to here: the next is not needed
        ordered[:, 1:][reached] = 0
        p_BV = torch.zeros_like(p_BV).scatter_(-1, ids, ordered)
    if sampling.min_p:
        p_BV = torch.where(p_BV >= sampling.min_p * p_BV.amax(dim=-1, keepdim=True), p_BV, 0)
    return p_BV / p_BV.sum(dim=-1, keepdim=True)


def draw(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token id per row: the first at which the sum of probabilities exceeds a number of its own CPU generator."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1).tolist()
    sums_BV = probabilities(logits_BV, sampling).cumsum(dim=-1)
    drawn = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    at_B1 = torch.stack(drawn).to(sums_BV.device) * (1 - 2**-52) * sums_BV[:, -1:]  # always less than the whole sum
    found_B = torch.searchsorted(sums_BV, at_B1, right=True)[:, 0]
    return found_B.clamp(max=logits_BV.shape[-1] - 1).tolist()  # where the model gave no numbers: still a token


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
    counts: list[Counts] = []  # where penalties ask for them
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
        if sampling.has_penalties:
            if not counts:
                counts = [Counts(prompt, logits_BV.shape[-1], logits_BV.device) for prompt in prompts]
            pairs = zip(logits_BV, live, strict=True)
            logits_BV = torch.stack([penalised(logits_V, sampling, counts[i]) for logits_V, i in pairs])
        drawn = draw(logits_BV, sampling, [generators[i] for i in live])
        for i, token in zip(live, drawn, strict=True):
            sequences[i].append(token)
            if counts:
                counts[i].write(token)
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
