"""What each attention head looks at, in six numbers.

Every score is a mean over queries of test text, taken from the very probabilities that the model uses.
Positions count within a document's segment; the first query of a segment, which can only see itself,
is left out.

    entropy     -sum p ln p, in nats: 0 for one key, ln 8 = 2.08 for eight keys alike
    distance    mean of i - j: how far back it looks, in tokens
    sink        probability on the first position of the segment
    previous    probability on the token before
    duplicate   probability on earlier occurrences of the same token
    induction   probability on tokens that came after an earlier occurrence of the same token

Example for the last two, with tokens a b c a and the query at the second a: the key at the first a is
the duplicate, the key at b is the induction target, since b came after a (Olsson et al., 2022,
In-context learning and induction heads). Both are means over the queries that have such a key.

The attention is causal, so the first slots of a row do not depend on the rest: at most `MAX_SLOTS`
of each row are read, which bounds the memory. Shapes: B rows, H heads, T slots.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.perplexity import to_tensors
from stages.tokens import Batch, TokenRows

if TYPE_CHECKING:
    from torch import Tensor

    from model.decoder import Decoder

MAX_SLOTS = 1024
SCORES = ("entropy", "distance", "sink", "previous", "induction", "duplicate")
PROBABILITIES_AT_ONCE = 1 << 23  # entries of [B, H, T, T] in one layer


def head_scores(model: Decoder, rows: TokenRows, max_tokens: int, device: str) -> list[dict[str, Any]]:
    """One entry per head: {layer, head, kind, and SCORES}, layers and heads from 0.

    Reads the first rows of the split, `max_tokens` slots of them but at least one row. An attention of one's
    own that has no `probabilities` has no entries.
    """
    import torch

    slots = min(rows.context_length, MAX_SLOTS)
    n_rows = min(rows.n_rows, max(1, max_tokens // slots))
    step = max(1, PROBABILITIES_AT_ONCE // (model.config.n_heads * slots**2))
    layers = [i for i, block in enumerate(model.blocks) if hasattr(block.attention, "probabilities")]
    if not layers:
        return []
    shape = (len(SCORES), len(layers), model.config.n_heads)
    sums = torch.zeros(shape, dtype=torch.float64)
    counts = torch.zeros(len(SCORES), dtype=torch.float64)
    for first in range(0, n_rows, step):
        batch = _first_slots(rows.batch(np.arange(first, min(first + step, n_rows))), slots)
        inputs, _, segments, positions = to_tensors(batch, device)
        targets = targets_of(inputs, segments, positions)
        counts += torch.stack([queries.sum() for queries in targets.queries()]).cpu()
        with torch.inference_mode():
            sums += _sums_of_batch(model, inputs, segments, positions, targets)
    means = (sums / counts.clamp(min=1)[:, None, None]).tolist()
    return [
        {"layer": layer, "head": head, "kind": model.config.kinds[layer]}
        | {name: round(means[s][row][head], 6) for s, name in enumerate(SCORES)}
        for row, layer in enumerate(layers)
        for head in range(model.config.n_heads)
    ]


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the scores of packed rows need to know about them.

    Attributes:
        starts: the slot at which the segment of each query begins, int64 [B, T].
        induction: keys that came after an earlier occurrence of the query's token, bool [B, T, T].
        duplicate: keys that are an earlier occurrence of it, bool [B, T, T].
        counted: queries with a token before them in their segment, bool [B, T].
    """

    starts: Tensor
    induction: Tensor
    duplicate: Tensor
    counted: Tensor

    def queries(self) -> list[Tensor]:
        """The queries over which each of SCORES is a mean, bool [B, T] each."""
        return [*[self.counted] * 4, self.induction.any(dim=-1), self.duplicate.any(dim=-1)]


def targets_of(inputs: Tensor, segments: Tensor, positions: Tensor) -> Targets:
    """The targets of packed rows, all [B, T] int64; padding (segment -1) is neither query nor target."""
    import torch

    slot = torch.arange(inputs.shape[1], device=inputs.device)
    earlier = (slot[:, None] > slot) & (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, :, None]
    duplicate = earlier & (inputs[:, :, None] == inputs[:, None, :])
    induction = torch.zeros_like(duplicate)
    induction[:, :, 1:] = duplicate[:, :, :-1] & earlier[:, :, 1:]
    return Targets(slot - positions, induction, duplicate, (segments >= 0) & (positions > 0))


def _sums_of_batch(model: Decoder, inputs: Tensor, segments: Tensor, positions: Tensor, targets: Targets) -> Tensor:
    """Each score summed over its queries, float64 [scores, layers, heads] on the CPU."""
    import torch

    from model.decoder import Block

    context = model.context(inputs, segments, positions)
    x_BTC = model.embed(inputs, context.places.positions)
    layers = []
    for block in model.blocks:
        assert isinstance(block, Block)
        if not hasattr(block.attention, "probabilities"):
            x_BTC, _ = block(x_BTC, context)
            continue
        p_BHTT = block.attention.probabilities(  # type: ignore[operator]
            block.attention_norm(x_BTC), context
        )
        scored = zip(_per_query(p_BHTT, targets), targets.queries(), strict=True)
        layers.append(torch.stack([_head_sums(scores, queries) for scores, queries in scored]))
        x_BTC, _ = block(x_BTC, context)
    return torch.stack(layers, dim=1).cpu()


def _per_query(p_BHTT: Tensor, targets: Targets) -> list[Tensor]:
    """Each of SCORES at each query, [B, H, T]; meaningless at queries that do not count."""
    import torch
    from torch.nn import functional as F

    slot = torch.arange(p_BHTT.shape[-1], device=p_BHTT.device, dtype=p_BHTT.dtype)
    starts = targets.starts[:, None, :, None].expand(*p_BHTT.shape[:3], 1)
    return [
        torch.special.entr(p_BHTT).sum(dim=-1),
        slot - p_BHTT @ slot,
        p_BHTT.gather(-1, starts)[..., 0],
        F.pad(p_BHTT.diagonal(-1, dim1=-2, dim2=-1), (1, 0)),
        (p_BHTT * targets.induction[:, None]).sum(dim=-1),
        (p_BHTT * targets.duplicate[:, None]).sum(dim=-1),
    ]


def _head_sums(scores_BHT: Tensor, queries_BT: Tensor) -> Tensor:
    return (scores_BHT.double() * queries_BT[:, None, :]).sum(dim=(0, 2))


def _first_slots(batch: Batch, slots: int) -> Batch:
    return Batch(*(array[:, :slots] for array in (batch.inputs, batch.labels, batch.segments, batch.positions)))
