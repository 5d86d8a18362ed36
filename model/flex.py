"""The backend `flex`: FlexAttention with a block mask that is made from document boundaries directly.

create_block_mask asks every pair of positions and holds [T, T] for it: 350 MB and 2 to 4 ms at 32K
tokens. Documents, windows and sinks are intervals, so which blocks of 128 x 128 are visible follows from
the first and last segment of each block and from whether a block holds a sink. Example with blocks of 4
and segments 0000 0111: the second block of queries sees the first block of keys, through its slot 4
alone, and itself.

A block that is not surely whole counts as partial, and within it the exact rule decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.context import Mask, Places, Reach, begins

BLOCK = 128
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def attend_flex(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Mask, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    function = flex_attention if torch.compiler.is_compiling() else _compiled()
    return function(
        q_BHTD, k_BKSD, v_BKSD, block_mask=mask.form, scale=scale, enable_gqa=q_BHTD.shape[1] != k_BKSD.shape[1]
    )


def rule(places: Places, reach: Reach, causal: bool) -> Rule:
    """Whether slot i sees slot j of row b, as FlexAttention asks it."""
    segments, positions = places.segments, places.positions

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) if causal else (j >= 0)
        if segments is not None:
            seen = seen & (segments[b, i] == segments[b, j])
        if reach.window:
            near = i - j < reach.window  # within a document, slots differ as positions do
            seen = seen & (near | (positions[b, j] < reach.sinks) if reach.sinks else near)
        return seen

    return sees


def block_mask(places: Places, reach: Reach, causal: bool) -> Any:
    """A BlockMask of all rows; shapes do not depend on where documents end, so nothing is compiled again.

    The blocks are listed both ways, by queries for the forward pass and by keys for the backward one.
    """
    from torch.nn.attention.flex_attention import BlockMask

    T = places.positions.shape[1]
    lists = _compiled_lists() if places.positions.is_cuda else block_lists
    partial, whole, backward_partial, backward_whole = lists(places, reach, causal)
    return BlockMask(  # type: ignore[misc]
        (T, T), *partial, *whole, *backward_partial, *backward_whole, BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=rule(places, reach, causal),
    )  # fmt: skip


@functools.cache
def _compiled_lists() -> Any:
    return torch.compile(block_lists, dynamic=False)  # some forty small kernels become a few


def block_lists(places: Places, reach: Reach, causal: bool) -> tuple[tuple[Tensor, Tensor], ...]:
    """Counts and numbers: of partial and of whole key blocks by query block, then of query blocks by key block."""
    partial, whole = visible_blocks(places, reach, causal)
    return _listed(partial), _listed(whole), _listed(partial.mT), _listed(whole.mT)


def _listed(blocks_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, int32 [B, 1, Q], and which, those first, [B, 1, Q, K]."""
    counts = blocks_BQK.sum(dim=-1, dtype=torch.int32)
    order = torch.argsort(blocks_BQK.int(), dim=-1, descending=True, stable=True).int()
    return counts[:, None].contiguous(), order[:, None].contiguous()


def visible_blocks(places: Places, reach: Reach, causal: bool) -> tuple[Tensor, Tensor]:
    """Blocks that are seen in part and blocks seen as a whole, bool [B, Q, K] each."""
    positions = places.positions
    B, T = positions.shape
    n = -(-T // BLOCK)
    segments = torch.zeros_like(positions) if places.segments is None else places.segments
    number = begins(segments).cumsum(dim=1) - 1  # 0, 1, 2.. along the row, whatever padding is called
    number = torch.nn.functional.pad(number, (0, n * BLOCK - T), value=-1).view(B, n, BLOCK)
    is_real = number >= 0
    first = torch.where(is_real, number, T).amin(dim=-1)
    last = number.amax(dim=-1)
    touches = (last[:, :, None] >= first[:, None, :]) & (first[:, :, None] <= last[:, None, :])
    i = torch.arange(n, device=positions.device)[:, None]
    j = torch.arange(n, device=positions.device)[None, :]
    one_document = (first == last) & is_real.all(dim=-1)
    whole = (one_document[:, :, None] & one_document[:, None, :]) & (last[:, :, None] == last[:, None, :])
    if causal:
        touches, whole = touches & (j <= i), whole & (j < i)
    if reach.window:
        nearest, farthest = (i - j) * BLOCK - (BLOCK - 1), (i - j) * BLOCK + (BLOCK - 1)
        near = nearest < reach.window
        if reach.sinks:
            sink = torch.nn.functional.pad(positions, (0, n * BLOCK - T), value=T).view(B, n, BLOCK) < reach.sinks
            near = near | sink.any(dim=-1)[:, None, :]
        touches, whole = touches & near, whole & (farthest < reach.window)
    return touches & ~whole, whole
