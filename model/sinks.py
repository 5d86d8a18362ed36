"""Adds attention sinks to FlashAttention over a window, in place.

Softmax over two sets of keys is a weighted mean of softmax over each, with weights exp(lse) of their
log-sum-exps. So a window of FlashAttention and the few first keys of each document merge exactly:

    lse = log(exp(lse_w) + sum over sinks s of exp(score_s))
    out = out_w exp(lse_w - lse) + sum over s of exp(score_s - lse) v_s

Example: window weight exp(lse_w) = 6 and two sinks with exp(score) 1 and 3: out = 0.6 out_w + 0.1 v_0 + 0.3 v_1.
A sink that the window already holds counts once: it is left out here.

Backward, FlashAttention needs no change: from the merged out and lse it makes the window's gradients as they
are under the whole softmax. The kernels (model/sink_kernels.py) add those of the sinks. So nothing is kept but what
attention keeps anyway. They go through tiles of queries of one document that see at least one sink behind their window.

Shapes: N tokens of all rows, H query heads, K key heads, D and V widths of keys and values, S sinks. Rows of one
document each may also come as [B, T, ..], and `lse` as [B, H, T].
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE, WARPS = 64, 4  # queries of a program of the kernels, and their threads by 32


def sink_tiles(offsets: Tensor, tokens: int, window: int) -> Tensor:
    """Tiles of queries that see a sink behind their window, int32 [4, tiles]: where the document begins, the first
    query, where the document ends, and its number among those longer than the window. Tiles to spare end at 0.

    Example: window 2, tiles of 4 queries, documents of 9 and 2 tokens: (0, 2, 9, 0), (0, 6, 9, 0),
    and none of the second.

    Args:
        offsets: the token at which each document begins, and the number of tokens, int32 [documents + 1].
    """
    n_documents = len(offsets) - 1
    far = (offsets.diff() - window).clamp(min=0)
    counts = (far + TILE - 1) // TILE
    ends = counts.cumsum(dim=0)
    # As many as there can be: what there are, the device alone knows. One alone would be compiled for itself.
    n_tiles = max(2, tokens // TILE + min(n_documents, tokens // (window + 1)))
    number = torch.arange(n_tiles, device=offsets.device)
    document = torch.searchsorted(ends, number, right=True).clamp(max=n_documents - 1)
    start = offsets[document]
    first = start + window + (number - (ends - counts)[document]) * TILE
    end = torch.where(number < ends[-1], offsets[document + 1], 0)
    return torch.stack((start, first, end, (far > 0).cumsum(dim=0)[document] - 1)).int()


def _sizes(q: Tensor, k: Tensor, v: Tensor, sinks: int) -> dict[str, int]:
    D, V = q.shape[-1], v.shape[-1]
    padded = [1 << (max(width, 16) - 1).bit_length() for width in (D, V, sinks)]  # what a matrix product takes
    return {"K": k.shape[-2], "D": D, "V": V, "S": sinks, **dict(zip(("DP", "VP", "SP"), padded, strict=True))}


def add_sinks_(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, window: int, sinks: int, scale: float
) -> None:
    """Adds the first `sinks` keys of each document to `out` and `lse` of attention over a window."""
    from model.sink_kernels import merge

    H, T = lse.shape[-2:]
    merge[H, tiles.shape[1]](
        q,
        k,
        v,
        out,
        lse,
        tiles,
        lse.numel() // H,
        T,
        scale,
        window,
        H=H,
        BLOCK=TILE,
        num_warps=WARPS,
        **_sizes(q, k, v, sinks),
    )


def add_sink_gradients_(
    dq: Tensor, dk: Tensor, dv: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor,
    tiles: Tensor, window: int, sinks: int, scale: float,
) -> None:  # fmt: skip
    """Adds what the sinks have in the gradients; `out` and `lse` are the merged ones."""
    from model.sink_kernels import add_sums, merge_backward

    H, T = lse.shape[-2:]
    N, sizes = lse.numel() // H, _sizes(q, k, v, sinks)
    K, D, V = sizes["K"], sizes["D"], sizes["V"]
    most_documents = max(1, min(tiles.shape[1], N // (window + 1)))
    sums = torch.zeros(most_documents * K * sinks * (D + V), dtype=torch.float32, device=q.device)
    of_keys, of_values = sums.split((most_documents * K * sinks * D, most_documents * K * sinks * V))
    merge_backward[H, tiles.shape[1]](
        q,
        k,
        v,
        out,
        dout,
        lse,
        tiles,
        dq,
        of_keys,
        of_values,
        N,
        T,
        scale,
        window,
        H=H,
        BLOCK=TILE,
        num_warps=WARPS,
        **sizes,
    )
    add_sums[K, tiles.shape[1]](dk, dv, of_keys, of_values, tiles, window, **sizes)
