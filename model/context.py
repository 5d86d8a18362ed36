"""What all blocks of one forward pass share: positions, rotations, and who sees whom.

Key j is visible to query i when all of this holds, i and j being positions within their document:

    same document    segment of i = segment of j
    no future        j <= i                                   unless the model reads both ways
    within reach     i - j < window or j < sinks              unless the window is 0: everything

Example with window 2 and 1 sink: the query at 4 sees 3 and 4, and 0. Each packed document has its own
sinks. Padding has segment -1 and sees the padding before it, so that no query is left without a key.

Shapes: B rows, T queries, S keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

EMPTY = -1  # the position of a slot of a cache that holds no key


class Reach(NamedTuple):
    """How far a layer sees: `window` tokens, itself included, and the first `sinks` of the document."""

    window: int = 0  # 0: everything
    sinks: int = 0


EVERYTHING = Reach()


@dataclasses.dataclass(frozen=True)
class Places:
    """Where tokens stand.

    Attributes:
        positions: within the document, int64 [B, T].
        segments: which document of the row, int64 [B, T]; None where a row is one document.
    """

    positions: Tensor
    segments: Tensor | None = None


def visible(queries: Places, keys: Places, reach: Reach = EVERYTHING, causal: bool = True) -> Tensor:
    """Which key each query sees, bool [B, 1, T, S]."""
    i, j = queries.positions[:, :, None], keys.positions[:, None, :]
    seen = (j >= 0).expand(-1, i.shape[1], -1)
    if causal:
        seen = seen & (j <= i)
    if reach.window:
        seen = seen & ((i - j < reach.window) | (j < reach.sinks))
    if queries.segments is not None and keys.segments is not None:
        seen = seen & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return seen[:, None]


def begins(segments_BT: Tensor) -> Tensor:
    """Where a document begins, bool [B, T]; the padding of a row is one. Example: segments 001 00- begin at 101 101."""
    return torch.nn.functional.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)


def count_documents(segments_BT: Tensor) -> int:
    """The documents of all rows. On a GPU this waits for the device: those who train count where the rows are made
    (stages/train/batches.py)."""
    return int(begins(segments_BT).sum())


@dataclasses.dataclass(frozen=True)
class Mask:
    """What `visible` says, in the form that a backend of attention wants.

    Attributes:
        backend: of model.backends; `form` is made by it and for it, None where nothing is to be said.
        causal: without `form`: whether queries see no future.
    """

    backend: str
    reach: Reach = EVERYTHING
    causal: bool = True
    form: object = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What a forward pass hands to every block.

    Attributes:
        places: of the tokens that come in, queries and keys alike.
        rotations: cosine and sine [B, 1, T, width] by the width that is rotated; empty without RoPE.
        masks: by kind of attention (`full`, `swa`, `mla`), of the kinds that the model has.
        causal: False in an encoder.
        losses: sums over tokens that blocks add to the loss of the objective while they train.
        plans: what the new tokens do to caches (model/cache.py), by their slots.
    """

    places: Places
    rotations: Mapping[int, tuple[Tensor, Tensor]]
    masks: Mapping[str, Mask]
    causal: bool = True
    losses: list[Tensor] = dataclasses.field(default_factory=list)
    plans: dict[Any, Any] = dataclasses.field(default_factory=dict)
