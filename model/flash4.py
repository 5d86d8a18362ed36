"""The backends `fa4` (the package flash-attn-4, by Dao-AILab) and `varlen` (torch's varlen_attn).

Both take packed documents as one row of tokens and the offsets at which documents begin. Sinks are no
part of FlashAttention; model/sinks.py adds them.

Shapes: B rows, T tokens of a row, N tokens of all, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.context import Mask, Places, count_documents
from model.sinks import add_sink_gradients_, add_sinks_

WINDOW_ACCUMULATOR_BYTES = 128 << 20


class Bounds(NamedTuple):
    """Documents of all rows laid end to end.

    Attributes:
        offsets: the token at which each begins, and the number of tokens, int32 [documents + 1].
        starts: where the document of each token begins, int32 [N].
        documents: which document each token belongs to, int32 [N].
        longest: no document is longer.
    """

    offsets: Tensor
    starts: Tensor
    documents: Tensor
    longest: int


@functools.cache
def flash4_is_installed() -> bool:
    return (
        importlib.util.find_spec("flash_attn") is not None and importlib.util.find_spec("flash_attn.cute") is not None
    )


def document_bounds(places: Places, n_documents: int | None = None) -> Bounds:
    """Where documents begin; padding counts as a document of its own. Example: segments 001 00-: 0 2 3 5 6.

    Args:
        n_documents: their number (model/context.py), so that nobody has to wait until the device has counted them.
    """
    B, T = places.positions.shape
    begins = torch.zeros((B, T), dtype=torch.bool, device=places.positions.device)
    begins[:, 0] = True
    if places.segments is not None:
        begins[:, 1:] = places.segments[:, 1:] != places.segments[:, :-1]
    if n_documents is None:
        n_documents = B if places.segments is None else count_documents(places.segments)
    documents = begins.flatten().cumsum(dim=0, dtype=torch.int32) - 1
    number = torch.arange(n_documents + 1, dtype=torch.int32, device=documents.device)
    offsets = torch.searchsorted(documents, number, out_int32=True)  # nonzero would wait for the device
    if offsets.is_cuda:
        torch._dynamo.mark_dynamic(offsets, 0)  # so that another number of documents compiles nothing again
    return Bounds(offsets, offsets[documents], documents, T)


def attend_varlen(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask: Mask, scale: float) -> Tensor:
    """By torch's varlen_attn."""
    from torch.nn.attention.varlen import varlen_attn

    assert isinstance(mask.form, Bounds)
    offsets, longest = mask.form.offsets, mask.form.longest
    B, T = q_BHTD.shape[0], q_BHTD.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))
    window = (mask.reach.window - 1 if mask.reach.window else -1, 0 if mask.causal else -1)
    y = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale, window_size=window)
    assert isinstance(y, Tensor)
    return y.unflatten(0, (B, T)).transpose(1, 2)


def attend_flash4(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask, scale: float) -> Tensor:
    """By flash-attn-4. Rows that are one document each and have no sinks go without offsets, which is faster."""
    B, T = q_BHTD.shape[0], q_BHTD.shape[2]
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BHTD, k_BKTD, v_BKTD))
    window, sinks = mask.reach
    if mask.form is None:
        y_BTHD, _ = torch.ops.millrace.flash4(q, k, v, scale, mask.causal, window, 0, None, None, None, 0)
        return y_BTHD.transpose(1, 2)
    assert isinstance(mask.form, Bounds)
    offsets, starts, documents, longest = mask.form
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    y, _ = torch.ops.millrace.flash4(q, k, v, scale, mask.causal, window, sinks, offsets, starts, documents, longest)
    return y.unflatten(0, (B, T)).transpose(1, 2)


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


@functools.cache
def register_flash4() -> None:
    """Makes flash-attn-4 with sinks the operator `millrace::flash4`, which torch.compile takes as it is.

    Called where masks are made, outside what is compiled: asked for from within, it broke every block in two, and
    the copies between them cost more than the attention.
    """
    interface = importlib.import_module("flash_attn.cute.interface")

    def common(causal: bool, window: int, offsets: Tensor | None, longest: int) -> dict[str, Any]:
        """A window is causal by having no keys to its right."""
        return {
            "causal": causal and not window,
            "window_size_left": window - 1 if window else None,
            "window_size_right": 0 if window else None,
            "cu_seqlens_q": offsets,
            "cu_seqlens_k": offsets,
            "max_seqlen_q": longest or None,
            "max_seqlen_k": longest or None,
        }

    @torch.library.custom_op("millrace::flash4", mutates_args=())
    def forward(
        q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int, sinks: int, offsets: Tensor | None,
        starts: Tensor | None, documents: Tensor | None, longest: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, lse, *_ = interface._flash_attn_fwd(
            q, k, v, softmax_scale=scale, return_lse=True, **common(causal, window, offsets, longest)
        )
        if sinks:
            assert starts is not None
            add_sinks_(out, lse, q, k, v, starts, window, sinks, scale)
        return out, lse

    @forward.register_fake
    def _(
        q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int, sinks: int, offsets: Tensor | None,
        starts: Tensor | None, documents: Tensor | None, longest: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        shape = (q.shape[0], q.shape[2], q.shape[1]) if q.ndim == 4 else (q.shape[1], q.shape[0])
        return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(shape, dtype=torch.float32)

    @torch.library.custom_op("millrace::flash4_backward", mutates_args=())
    def backward(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, scale: float, causal: bool,
        window: int, sinks: int, offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None, longest: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        dout = dout.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for queries, keys in head_groups(q, k, window):
            interface._flash_attn_bwd(
                q[..., queries, :], k[..., keys, :], v[..., keys, :], out[..., queries, :], dout[..., queries, :],
                lse[..., queries, :], softmax_scale=scale, dq=dq[..., queries, :], dk=dk[..., keys, :],
                dv=dv[..., keys, :], **common(causal, window, offsets, longest),
            )  # fmt: skip
        if sinks:
            assert offsets is not None and starts is not None and documents is not None
            add_sink_gradients_(
                dq, dk, dv, q, k, v, out, dout, lse, offsets, starts, documents, window, sinks, scale
            )  # fmt: skip
        return dq, dk, dv

    @backward.register_fake
    def _(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, scale: float, causal: bool,
        window: int, sinks: int, offsets: Tensor | None, starts: Tensor | None, documents: Tensor | None, longest: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.scale, ctx.causal, ctx.window, ctx.sinks, offsets, starts, documents, ctx.longest = inputs
        ctx.save_for_backward(q, k, v, *output, offsets, starts, documents)

    def gradients(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *bounds = ctx.saved_tensors
        dq, dk, dv = backward(
            q, k, v, out, dout, lse, ctx.scale, ctx.causal, ctx.window, ctx.sinks, *bounds, ctx.longest
        )  # fmt: skip
        return dq, dk, dv, *[None] * 8

    forward.register_autograd(gradients, setup_context=save)
