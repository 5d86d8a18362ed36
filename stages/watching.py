"""Runs a decoder while somebody watches its attention, in memory that grows with T and never with T x T.

So evaluation looks at heads (stages/evaluate/attention.py), and training at itself (stages/train/probes.py).

A forward pass takes its masks from the context (model/context.py). Here each mask is one that computes the
attention itself, a block of queries after the other, shows the block's probabilities, and hands the output on:
what is watched is what the model uses, for every kind of attention that calls `attend`.

    queries 128..191 of 256, window 64, 2 sinks:  keys 0, 1 and 65..191, probabilities [B, H, 64, 129]

Keys that no query of the block sees (the future, other documents, what lies before the window) are left out.

Shapes: B rows, H query heads, K key heads, Q queries of a block, S its keys, D width of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from model.context import Places, Reach
    from model.decoder import Decoder

QUERIES = 64  # at most in a block: fewer waste less of the future's half, more waste less on starting operations
ENTRIES = 1 << 22  # probabilities [B, H, Q, S] at most in a block, but one query: 16 MB in fp32
NEVER = -1e30  # the score of an invisible key; its probability is exactly 0, and 0 * log 0 stays finite


@dataclasses.dataclass(frozen=True)
class Block:
    """The attention of some queries of all rows.

    Attributes:
        layer: from 0.
        queries: their slots, int64 [Q]. keys: the slots that any of them may see, ascending, int64 [S].
        seen: which key each query sees, bool [B, Q, S].
        p, log_p: [B, H, Q, S] in fp32; rows of p sum to 1.
        scores: the products of queries and keys, scaled, likewise; `NEVER` where a key is not seen.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    seen: Tensor
    p: Tensor
    log_p: Tensor
    scores: Tensor


def watch(
    model: Decoder, inputs_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor, look: Callable[[Block], None]
) -> list[int]:
    """Runs the blocks of the model and calls `look` for all blocks of queries of all layers.

    Returns the layers that were seen: an attention of one's own that does not call `attend` shows nothing.
    """
    from model.context import EVERYTHING, Mask, Reach

    context = model.context(inputs_BT, segments_BT, positions_BT, cached=True)  # without masks, which are [T, T]
    windowed = Reach(model.config.window, model.config.sink_tokens)
    shown: set[int] = set()

    def attention(layer: int, reach: Reach) -> Mask:
        def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            shown.add(layer)
            return _attend(layer, q, k, v, scale, context.places, reach, look)

        return Mask("watched", reach, True, attend)

    x_BTC = model.embed(inputs_BT, context.places.positions)
    for layer, block in enumerate(model.blocks):
        whole = attention(layer, EVERYTHING)
        masks = {"full": whole, "mla": whole, "swa": attention(layer, windowed)}
        x_BTC, _ = block(x_BTC, dataclasses.replace(context, masks=masks))
    return sorted(shown)


def _attend(
    layer: int, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, places: Places, reach: Reach,
    look: Callable[[Block], None],
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale, where visible) v, [B, H, T, width of v], causal."""
    import torch

    from model.context import Places, visible

    rows, n_heads, length, _ = q_BHTD.shape
    n_kv_heads, width = k_BKTD.shape[1], v_BKTD.shape[-1]
    y_BHTD = q_BHTD.new_empty(rows, n_heads, length, width)
    step = max(1, min(QUERIES, ENTRIES // (rows * n_heads * min(length, reach.window or length))))
    segments = places.segments
    for first in range(0, length, step):
        queries = torch.arange(first, min(first + step, length), device=q_BHTD.device)
        keys = keys_of(places.positions, reach, queries)
        of_queries, of_keys = (
            Places(places.positions[:, slots], None if segments is None else segments[:, slots])
            for slots in (queries, keys)
        )
        seen_B1QS = visible(of_queries, of_keys, reach)
        # Heads that share keys stand one below the other, so that keys are not repeated in memory.
        q = (q_BHTD[:, :, queries].float() * scale).reshape(rows, n_kv_heads, -1, q_BHTD.shape[-1])
        with torch.autocast(q_BHTD.device.type, enabled=False):  # in fp32, whatever the precision of the pass
            scores = q @ k_BKTD[:, :, keys].float().transpose(-1, -2)
            scores_BHQS = scores.view(rows, n_heads, len(queries), len(keys)).masked_fill_(~seen_B1QS, NEVER)
            log_p = scores_BHQS.log_softmax(dim=-1)
            p = log_p.exp()
            y = p.view(rows, n_kv_heads, -1, len(keys)) @ v_BKTD[:, :, keys].float()
        y_BHTD[:, :, queries] = y.view(rows, n_heads, len(queries), width).to(y_BHTD.dtype)
        look(Block(layer, queries, keys, seen_B1QS[:, 0], p, log_p, scores_BHQS))
    return y_BHTD


def keys_of(positions_BT: Tensor, reach: Reach, queries: Tensor) -> Tensor:
    """The slots that these neighbouring queries may see in any row, ascending."""
    import torch

    first, last = int(queries[0]), int(queries[-1])
    starts = first - positions_BT[:, first]  # of the first query's document; later ones begin within the block
    lowest = int(starts.min())
    near = torch.arange(lowest, last + 1, device=queries.device)
    if not reach.window or lowest >= first - reach.window + 1:
        return near
    near = near[first - reach.window + 1 - lowest :]
    sinks = (starts[:, None] + torch.arange(reach.sinks, device=queries.device)).unique()
    return torch.cat((sinks[sinks < near[0]], near))
