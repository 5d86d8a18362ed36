"""Adds attention sinks to FlashAttention over a window, in place.

Softmax over two sets of keys is a weighted mean of softmax over each, with weights exp(lse) of their
log-sum-exps. So a window of FlashAttention and the few first keys of each document merge exactly:

    lse = log(exp(lse_w) + sum over sinks s of exp(score_s))
    out = out_w exp(lse_w - lse) + sum over s of exp(score_s - lse) v_s

Example: window weight exp(lse_w) = 6 and two sinks with exp(score) 1 and 3: out = 0.6 out_w + 0.1 v_0 + 0.3 v_1.
A sink that the window already holds counts once: it is left out here.

Backward, FlashAttention needs no change: from the merged out and lse it makes the window's gradients as they
are under the whole softmax. The kernels (model/sink_kernels.py) add those of the sinks, by matrix products of
16 keys. So nothing is kept but what attention keeps anyway.

Shapes: N tokens of all rows, H query heads, K key heads, D and V widths of keys and values, S sinks. Rows of one
document each may also come as [B, T, ..], and `lse` as [B, H, T].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64


class Sinks(NamedTuple):
    """Where they are, all int32.

    Attributes:
        starts: the token at which the document of each token begins, [N].
        documents: which document each token belongs to, [N].
        tokens: that are sinks, [documents * S].
    """

    starts: Tensor
    documents: Tensor
    tokens: Tensor


def sinks_of(offsets: Tensor, n_tokens: int, sinks: int) -> Sinks:
    """Example: documents of 3 and 2 tokens, one sink: starts 0 0 0 3 3, documents 0 0 0 1 1, tokens 0 3.

    Args:
        offsets: the token at which each document begins, and the number of tokens, int32 [documents + 1].
    """
    number = torch.arange(n_tokens, dtype=torch.int32, device=offsets.device)
    documents = torch.searchsorted(offsets, number, right=True, out_int32=True) - 1
    # A document shorter than its sinks has gradients of zero there, and adds them to some other token.
    tokens = offsets[:-1, None] + torch.arange(sinks, dtype=torch.int32, device=offsets.device)
    return Sinks(offsets[documents], documents, tokens.flatten().clamp(max=n_tokens - 1))


def _sizes(q: Tensor, k: Tensor, v: Tensor, sinks: int) -> dict[str, int]:
    D, V = q.shape[-1], v.shape[-1]
    padded = [1 << (max(width, 16) - 1).bit_length() for width in (D, V, sinks)]  # what a matrix product takes
    names = {"H": q.shape[-2], "K": k.shape[-2], "D": D, "V": V, "S": sinks, "BLOCK": BLOCK}
    return names | dict(zip(("DP", "VP", "SP"), padded, strict=True))


def add_sinks_(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, window: int, sinks: int, scale: float
) -> None:
    """Adds the first `sinks` keys of each document to `out` and `lse` of attention over a window."""
    from model.sink_kernels import merge

    N, (H, T) = len(starts), lse.shape[-2:]
    merge[-(-N // BLOCK), H](q, k, v, out, lse, starts, N, T, scale, window, **_sizes(q, k, v, sinks))


def add_sink_gradients_(
    dq: Tensor, dk: Tensor, dv: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor,
    where: Sinks, window: int, sinks: int, scale: float,
) -> None:  # fmt: skip
    """Adds what the sinks have in the gradients; `out` and `lse` are the merged ones."""
    from model.sink_kernels import merge_backward

    N, (H, T), n_sinks = len(where.starts), lse.shape[-2:], len(where.tokens)
    (K, D), V = k.shape[-2:], v.shape[-1]
    sums = torch.zeros(n_sinks * K * (D + V), dtype=torch.float32, device=q.device)
    dk_sums, dv_sums = sums[: n_sinks * K * D].view(-1, K, D), sums[n_sinks * K * D :].view(-1, K, V)
    merge_backward[-(-N // BLOCK), H](
        q, k, v, out, dout, lse, where.starts, where.documents, dq, dk_sums, dv_sums, N, T, scale, window,
        **_sizes(q, k, v, sinks),
    )  # fmt: skip
    dk.view(N, K, D).index_add_(0, where.tokens, dk_sums.to(dk.dtype))
    dv.view(N, K, V).index_add_(0, where.tokens, dv_sums.to(dv.dtype))
