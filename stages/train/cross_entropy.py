# mypy: disable-error-code="name-defined, no-untyped-def"
"""The head and its loss in chunks of tokens: no [tokens, vocabulary] is ever held, and no fp32 of one.

The logits of a chunk are made, turned into their own gradient where they lie, multiplied into the gradients of
hidden states and head, and forgotten. So the backward pass is done when the forward pass is; only the factor of
the loss, which is known later, is multiplied in afterwards (the idea of Liger, Hsu et al., 2024). At a vocabulary
of 50,304 and 16K tokens, plain logits and their gradient take 3.3 GB in bf16; a chunk of 2,048 takes 0.2.

With p the softmax of logits x, e the label smoothing, z the weight of the z-loss and y the label:

    nats     logsumexp(x) - x_y
    total    (1 - e) nats + e (logsumexp(x) - mean(x)) + z logsumexp(x)^2
    d total  p (1 + 2 z logsumexp(x)) - (1 - e) [y] - e / V

Example: x = [0, ln 3], y = 1: p = [1/4, 3/4], nats = ln 4/3 = 0.288, gradient [1/4, -1/4].

Logits are bf16 under autocast, statistics and sums fp32; the head's gradient is summed over chunks in fp32.
Shapes: N tokens, C hidden, V vocabulary; the head may have more rows, whose logits do not count.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from stages.tokens import IGNORED_LABEL


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """What is added to cross-entropy, and what bounds the logits: cap * tanh(logits / cap), 0 = nothing."""

    vocab_size: int
    softcap: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def chunked_cross_entropy(
    hidden_NC: Tensor, head_VC: Tensor, labels_N: Tensor, terms: LossTerms, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Sums over the labels: what is minimised, and its part that is cross-entropy, both fp32 []."""
    device = hidden_NC.device.type
    if torch.is_autocast_enabled(device):
        hidden_NC = hidden_NC.to(torch.get_autocast_dtype(device))
    return _ChunkedCrossEntropy.apply(hidden_NC, head_VC, labels_N, terms, chunk_tokens)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, head_VC: Tensor, labels_N: Tensor, terms: LossTerms, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        head = head_VC.to(hidden_NC.dtype)
        sums = torch.zeros(2, dtype=torch.float32, device=hidden_NC.device)
        hidden_gradient = torch.empty_like(hidden_NC) if wanted else None
        head_gradient = torch.zeros(head.shape, dtype=_sum_dtype(head), device=head.device) if wanted else None
        with torch.autocast(hidden_NC.device.type, enabled=False):
            for first in range(0, len(hidden_NC), chunk_tokens):
                part = slice(first, first + chunk_tokens)
                logits = hidden_NC[part] @ head.t()
                sums += _gradient_in_place(logits, labels_N[part], terms)
                if hidden_gradient is not None and head_gradient is not None:
                    torch.mm(logits, head, out=hidden_gradient[part])
                    _add_product_(head_gradient, logits, hidden_NC[part])
                del logits
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.head_dtype = head_VC.dtype
        total, nats = sums.unbind()
        ctx.mark_non_differentiable(nats)
        return total, nats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        factor = gradients[0]
        return hidden_gradient * factor, head_gradient.mul_(factor).to(ctx.head_dtype), None, None, None


def _sum_dtype(head: Tensor) -> torch.dtype:
    return torch.float64 if head.dtype == torch.float64 else torch.float32


def _add_product_(sum_VC: Tensor, logits_NV: Tensor, hidden_NC: Tensor) -> None:
    """sum += logits^T hidden, in the precision of the sum."""
    if sum_VC.is_cuda and sum_VC.dtype != hidden_NC.dtype:
        torch.addmm(sum_VC, logits_NV.t(), hidden_NC, out_dtype=sum_VC.dtype, out=sum_VC)
    else:
        sum_VC += logits_NV.t() @ hidden_NC


def _gradient_in_place(logits_NV: Tensor, labels_N: Tensor, terms: LossTerms) -> Tensor:
    """Replaces logits by the gradient of their total; returns the sums of total and nats, [2]."""
    if logits_NV.is_cuda and importlib.util.find_spec("triton") is not None:
        return _by_kernel(logits_NV, labels_N, terms)
    return gradient_by_torch(logits_NV, labels_N, terms)


def gradient_by_torch(logits_NV: Tensor, labels_N: Tensor, terms: LossTerms) -> Tensor:
    """The same in torch's operations: on CPUs, and the oracle of the kernel."""
    V, smoothing = terms.vocab_size, terms.label_smoothing
    raw = logits_NV[:, :V].to(torch.promote_types(logits_NV.dtype, torch.float32))
    x = terms.softcap * torch.tanh(raw / terms.softcap) if terms.softcap else raw
    counted = labels_N != IGNORED_LABEL
    labels = labels_N.where(counted, 0)[:, None]
    lse = x.logsumexp(dim=-1, keepdim=True)
    nats = lse - x.gather(1, labels)
    total = (1 - smoothing) * nats + smoothing * (lse - x.mean(dim=-1, keepdim=True)) + terms.z_loss * lse.square()
    gradient = (x - lse).exp() * (1 + 2 * terms.z_loss * lse) - smoothing / V
    gradient.scatter_add_(1, labels, torch.full_like(lse, smoothing - 1))
    if terms.softcap:
        gradient *= 1 - (x / terms.softcap).square()
    logits_NV[:, :V] = gradient * counted[:, None]
    logits_NV[:, V:] = 0
    return torch.stack([total[counted].sum(), nats[counted].sum()]).float()


def _by_kernel(logits_NV: Tensor, labels_N: Tensor, terms: LossTerms) -> Tensor:
    sums_N2 = logits_NV.new_empty((len(logits_NV), 2), dtype=torch.float32)
    _kernel()[(len(logits_NV),)](
        logits_NV, labels_N, sums_N2, logits_NV.stride(0), terms.softcap, terms.z_loss, terms.label_smoothing,
        WIDTH=logits_NV.shape[1], VOCABULARY=terms.vocab_size, IGNORED=IGNORED_LABEL, CAPPED=bool(terms.softcap),
        BLOCK=4096, num_warps=8,
    )  # fmt: skip
    return sums_N2.sum(dim=0)


@functools.cache
def _kernel() -> Any:
    """One program a token: it reads its logits twice, the second time from the cache, and writes them once."""
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

    @triton.jit
    def gradient_in_place(
        logits, labels, sums, stride, softcap, z_loss, smoothing,
        WIDTH: tl.constexpr, VOCABULARY: tl.constexpr, IGNORED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        start = logits + row * stride
        label = tl.load(labels + row)
        columns = tl.arange(0, BLOCK)
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        exponentials = tl.zeros((BLOCK,), tl.float32)
        plain = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, VOCABULARY, BLOCK):
            inside = first + columns < VOCABULARY
            x = tl.load(start + first + columns, mask=inside, other=float("-inf")).to(tl.float32)
            if CAPPED:
                x = tl.where(inside, softcap * (2 * tl.sigmoid(2 * x / softcap) - 1), float("-inf"))
            higher = tl.maximum(highest, x)
            kept = tl.where(higher == highest, 1.0, tl.exp(highest - higher))
            exponentials = exponentials * kept + tl.where(inside, tl.exp(x - higher), 0.0)
            highest = higher
            plain += tl.where(inside, x, 0.0)
        top = tl.max(highest, 0)
        lse = top + tl.log(tl.sum(tl.where(exponentials > 0, exponentials * tl.exp(highest - top), 0.0), 0))
        counted = label != IGNORED
        x_label = tl.load(start + tl.where(counted, label, 0)).to(tl.float32)
        if CAPPED:
            x_label = softcap * (2 * tl.sigmoid(2 * x_label / softcap) - 1)
        nats = lse - x_label
        smooth = lse - tl.sum(plain, 0) / VOCABULARY
        total = (1 - smoothing) * nats + smoothing * smooth + z_loss * lse * lse
        tl.store(sums + row * 2, tl.where(counted, total, 0.0))
        tl.store(sums + row * 2 + 1, tl.where(counted, nats, 0.0))
        tl.debug_barrier()  # every thread has read the label's logit before any writes over it
        for first in range(0, WIDTH, BLOCK):
            inside = first + columns < VOCABULARY
            x = tl.load(start + first + columns, mask=inside, other=float("-inf")).to(tl.float32)
            if CAPPED:
                x = tl.where(inside, softcap * (2 * tl.sigmoid(2 * x / softcap) - 1), float("-inf"))
            gradient = tl.exp(x - lse) * (1 + 2 * z_loss * lse) - smoothing / VOCABULARY
            gradient = tl.where(first + columns == label, gradient - (1 - smoothing), gradient)
            if CAPPED:
                gradient *= 1 - (x / softcap) * (x / softcap)
            gradient = tl.where(inside & counted, gradient, 0.0)
            tl.store(start + first + columns, gradient, mask=first + columns < WIDTH)

    return gradient_in_place
