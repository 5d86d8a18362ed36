# mypy: disable-error-code="no-untyped-call"
"""The head and its loss in chunks of tokens, without ever writing logits (quack's kernels; fused.py says when).

cross_entropy.py writes a chunk's logits, reads them twice, writes their gradient over them, and reads that twice for
its two products. Here the product with the head ends in exponentials, scaled by a power of two for each token and
each 192 entries so that none overflows, with their sums beside them; the softmax is those exponentials times one
number a token and 64 entries, which the two products of the gradient multiply in as they read:

    E = 2^(x log2 e - k)      dx = v * (u E) W      dW += (u E)^T (v h)      u = 2^(k - max k), v = 2^(max k) / sum e^x

Statistics are of fp32 logits, where cross_entropy.py has them rounded to bf16. On an H200 it takes 0.92 of its time at
width 1,536 and 0.82 at 768 (docs/train.md). For plain cross-entropy over a vocabulary of whole tiles: no soft-cap,
z-loss, smoothing or padding.

Shapes: N tokens, C hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.decoder import Decoder
from stages.tokens import IGNORED_LABEL
from stages.train.cross_entropy import LossTerms

TILE = 128  # of the vocabulary and of the tokens of a chunk


def suits(model: Decoder, terms: LossTerms, chunk_tokens: int) -> bool:
    """Whether this loss is one that the kernels compute."""
    head = model.embedding if model.head is None else model.head
    V, C = head.weight.shape
    plain = not (terms.softcap or terms.z_loss or terms.label_smoothing) and terms.vocab_size == V
    return plain and V % TILE == 0 and C % 8 == 0 and chunk_tokens > 0 and chunk_tokens % TILE == 0


def scaled_cross_entropy(hidden_NC: Tensor, head_VC: Tensor, labels_N: Tensor, chunk_tokens: int) -> Tensor:
    """The sum of nats over the labels, fp32 []."""
    return _ScaledCrossEntropy.apply(hidden_NC.to(torch.bfloat16), head_VC, labels_N, chunk_tokens)


class _ScaledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, head_VC: Tensor, labels_N: Tensor, chunk_tokens: int) -> Tensor:
        from quack.linear_cross_entropy import scaled_exp_linear_cross_entropy_fwd

        with torch.autocast(hidden_NC.device.type, enabled=False):
            nats, d_hidden, d_head = scaled_exp_linear_cross_entropy_fwd(
                hidden_NC, head_VC.to(hidden_NC.dtype), labels_N, chunk_tokens, IGNORED_LABEL
            )
        ctx.save_for_backward(d_hidden[: len(hidden_NC)], d_head)  # rows behind fill the last tile
        ctx.head_dtype = head_VC.dtype
        return nats.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        factor = gradients[0]
        return d_hidden * factor, d_head.mul_(factor).to(ctx.head_dtype), None, None
