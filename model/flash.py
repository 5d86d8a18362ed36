"""The backends that take packed documents as one row of tokens and the offsets at which documents begin:
`varlen`, `fa2` and `fa4` (model/backends.py).

The packages of the last two become one operator, which torch.compile takes as it is. Sinks are no
part of FlashAttention; model/sinks.py adds them to what it makes of the window.

Shapes: B rows, T tokens of a row, N tokens of all, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.context import Mask, Places, Reach, begins, count_documents
from model.flash_packages import PACKAGES, Call
from model.sinks import Sinks, add_sink_gradients_, add_sinks_, sinks_of

WINDOW_ACCUMULATOR_BYTES = 128 << 20
# Of this module's own: an export carries a copy of this file, which must not take the place of ours in one process.
OPERATOR = f"millrace::{re.sub(r'[^A-Za-z0-9]', '_', __name__)}"


class Bounds(NamedTuple):
    """Documents of all rows laid end to end.

    Attributes:
        offsets: the token at which each begins, and the number of tokens, int32 [documents + 1]; None where every row
            is one document and stays a row, which is faster.
        starts, documents, tokens: where the sinks are (model/sinks.py); None without.
        longest: no document is longer; 0 without offsets.
    """

    offsets: Tensor | None = None
    starts: Tensor | None = None
    documents: Tensor | None = None
    tokens: Tensor | None = None
    longest: int = 0


def document_bounds(places: Places, reach: Reach, n_documents: int | None = None, as_rows: bool = False) -> Bounds:
    """Where documents begin, and their sinks.

    Args:
        n_documents: their number (model/context.py), so that nobody has to wait until the device has counted them.
        as_rows: leave rows that are one document each as they are.
    """
    B, T = places.positions.shape
    as_rows = as_rows and places.segments is None
    if as_rows and not reach.sinks:
        return Bounds()
    offsets = document_offsets(places, n_documents)
    starts, documents, tokens = sinks_of(offsets, B * T, reach.sinks) if reach.sinks else (None, None, None)
    if not as_rows and offsets.is_cuda:  # so that another number of documents compiles nothing again
        for counted in (offsets, tokens):
            if counted is not None and len(counted) > 1:
                torch._dynamo.mark_dynamic(counted, 0)
    return Bounds(None if as_rows else offsets, starts, documents, tokens, 0 if as_rows else T)


def document_offsets(places: Places, n_documents: int | None = None) -> Tensor:
    """Where documents begin, and the number of tokens; padding counts as a document of its own.

    Example: segments 001 00- are 0 2 3 5 6.
    """
    B, T = places.positions.shape
    device = places.positions.device
    if places.segments is None:
        return torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device)
    if n_documents is None:
        n_documents = count_documents(places.segments)
    documents = begins(places.segments).flatten().cumsum(dim=0, dtype=torch.int32) - 1
    number = torch.arange(n_documents + 1, dtype=torch.int32, device=device)
    return torch.searchsorted(documents, number, out_int32=True)  # nonzero would wait for the device


def attend_varlen(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask: Mask, scale: float) -> Tensor:
    """By torch's varlen_attn."""
    from torch.nn.attention.varlen import varlen_attn

    assert isinstance(mask.form, Bounds)
    offsets, longest = mask.form.offsets, mask.form.longest
    assert offsets is not None
    B, T = q_BHTD.shape[0], q_BHTD.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))
    window = (mask.reach.window - 1 if mask.reach.window else -1, 0 if mask.causal else -1)
    y = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale, window_size=window)
    assert isinstance(y, Tensor)
    return y.unflatten(0, (B, T)).transpose(1, 2)


def attend_flash(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask, scale: float) -> Tensor:
    """By a package of FlashAttention."""
    assert isinstance(mask.form, Bounds)
    B, T = q_BHTD.shape[0], q_BHTD.shape[2]
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BHTD, k_BKTD, v_BKTD))
    if mask.form.offsets is not None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    y, _ = flash(q, k, v, mask.backend, scale, mask.causal, *mask.reach, *mask.form)
    return (y if y.ndim == 4 else y.unflatten(0, (B, T))).transpose(1, 2)


@torch.library.custom_op(OPERATOR, mutates_args=())
def flash(
    q: Tensor, k: Tensor, v: Tensor, package: str, scale: float, causal: bool, window: int, sinks: int,
    offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None, tokens: Tensor | None, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and log-sum-exp of rows [B, T, H, D] and [B, H, T], or, with offsets, of tokens [N, H, D] and [H, N]."""
    out, lse = PACKAGES[package].forward(q, k, v, Call(scale, causal, window, offsets, longest))
    if sinks:
        assert starts is not None
        add_sinks_(out, lse, q, k, v, starts, window, sinks, scale)
    return out, lse


@flash.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, package: str, scale: float, causal: bool, window: int, sinks: int,
    offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None, tokens: Tensor | None, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32).transpose(-1, -2).contiguous()
    return q.new_empty(*q.shape[:-1], v.shape[-1]), lse


@torch.library.custom_op(f"{OPERATOR}_backward", mutates_args=())
def flash_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, package: str, scale: float, causal: bool,
    window: int, sinks: int, offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None,
    tokens: Tensor | None, longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values."""
    dout = dout.contiguous()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for heads, keys in head_groups(q, k, window):
        PACKAGES[package].backward(
            q[..., heads, :], k[..., keys, :], v[..., keys, :], out[..., heads, :], dout[..., heads, :],
            lse[..., heads, :], dq[..., heads, :], dk[..., keys, :], dv[..., keys, :],
            Call(scale, causal, window, offsets, longest),
        )  # fmt: skip
    if sinks:
        assert starts is not None and documents is not None and tokens is not None
        where = Sinks(starts, documents, tokens)
        add_sink_gradients_(dq, dk, dv, q, k, v, out, dout, lse, where, window, sinks, scale)
    return dq, dk, dv


@flash_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, package: str, scale: float, causal: bool,
    window: int, sinks: int, offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None,
    tokens: Tensor | None, longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.numbers, offsets, starts, documents, tokens, ctx.longest = inputs
    ctx.save_for_backward(q, k, v, *output, offsets, starts, documents, tokens)


def _gradients(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *bounds = ctx.saved_tensors
    return *flash_backward(q, k, v, out, dout, lse, *ctx.numbers, *bounds, ctx.longest), *[None] * 10


flash.register_autograd(_gradients, setup_context=_save)


def head_groups(q: Tensor, k: Tensor, window: int) -> list[tuple[slice, slice]]:
    """Query heads and key heads that go backward together.

    FlashAttention sums the queries' gradient in fp32, twice the size of q. A window is so little work that this
    would be its largest piece of memory, so its heads take turns in a smaller one.
    """
    H, K = q.shape[-2], k.shape[-2]
    wanted = -(-q.numel() * 4 // WINDOW_ACCUMULATOR_BYTES) if window else 1
    n_groups = next(n for n in range(min(wanted, K), K + 1) if K % n == 0)
    heads, keys = H // n_groups, K // n_groups
    return [(slice(g * heads, (g + 1) * heads), slice(g * keys, (g + 1) * keys)) for g in range(n_groups)]
