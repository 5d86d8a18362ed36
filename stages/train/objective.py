"""What is predicted from what. One small object per objective; the loop knows none of them.

Causal: at every slot of a packed row, the next token of the same document. The loss is a sum in
nats, so that the loop can divide by the labels of the whole global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.decoder import Decoder
from stages.tokens import IGNORED_LABEL
from stages.train.activations import is_compiled_inside
from stages.train.cross_entropy import LossTerms, chunked_cross_entropy
from stages.train.scaled_cross_entropy import scaled_cross_entropy, suits

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


class CausalObjective(nn.Module):
    """Sums over the labels of a micro-batch; losses in fp32.

    Args:
        chunk_tokens: logits of so many tokens are held at once (stages/train/cross_entropy.py); 0 = of all.
        fused: where this loss allows it, by kernels that write no logits (stages/train/scaled_cross_entropy.py).
    """

    def __init__(
        self, model: Decoder, z_loss: float = 0.0, label_smoothing: float = 0.0, chunk_tokens: int = 0,
        fused: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.model, self.chunk_tokens = model, chunk_tokens
        self.terms = LossTerms(model.vocab_size, model.config.logit_softcap, z_loss, label_smoothing)
        self.fused = fused and suits(model, self.terms, chunk_tokens)

    def forward(
        self, inputs_BT: Tensor, labels_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor,
        n_documents: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is minimised, and its part that is cross-entropy. `n_documents` of all rows, if known."""
        context = self.model.context(inputs_BT, segments_BT, positions_BT, n_documents)
        total, nats = self.of_hidden(self.model.hidden(inputs_BT, context), labels_BT)
        for loss in context.losses:
            total = total + loss
        return total, nats

    def of_hidden(self, hidden_BTC: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the last hidden states, without the losses of blocks."""
        if self.chunk_tokens:
            head = self.model.embedding if self.model.head is None else self.model.head
            hidden_NC, labels_N = hidden_BTC.flatten(0, 1), labels_BT.flatten()
            if self.fused and torch.is_grad_enabled():
                nats = scaled_cross_entropy(hidden_NC, head.weight, labels_N, self.chunk_tokens)
                return nats, nats.detach()
            return chunked_cross_entropy(hidden_NC, head.weight, labels_N, self.terms, self.chunk_tokens)
        return self.of_logits(hidden_BTC, labels_BT)

    def of_logits(self, hidden_BTC: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same with all logits at once."""
        terms = self.terms
        logits_NV = self.model.logits(hidden_BTC).flatten(0, 1).float()
        labels_N = labels_BT.flatten()
        total = nats = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
        if terms.label_smoothing:
            total = F.cross_entropy(
                logits_NV, labels_N, ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=terms.label_smoothing
            )
        if terms.z_loss:  # keeps the normaliser of the softmax near 1 (PaLM, 2022)
            total = total + terms.z_loss * (logits_NV.logsumexp(dim=-1).square() * (labels_N != IGNORED_LABEL)).sum()
        return total, nats


def compile_parts(model: Decoder, objective: nn.Module, sharded: bool = False) -> None:
    """Compiles every block by itself, the last norm, and the head with its loss where that is not in chunks.

    Blocks of one kind share their compiled code, so that it takes seconds where the whole takes minutes, at
    equal speed. Masks are made outside: their cost is paid once and not traced. So is the gathering of parameters
    that are `sharded`, which stands in hooks around a block's forward.
    """
    for block in model.blocks:
        if is_compiled_inside(block):
            continue
        if sharded:
            block.forward = torch.compile(block.forward, dynamic=False)
        else:
            block.compile(dynamic=False)
    model.final_norm.compile(dynamic=False)
    if isinstance(objective, CausalObjective):
        objective.of_logits = torch.compile(objective.of_logits, dynamic=False)  # type: ignore[method-assign]


OBJECTIVES: dict[str, type[CausalObjective]] = {"causal": CausalObjective}


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of the forward pass: half precision for matrix products and the residual stream, or fp32."""
    enabled = precision != "fp32"
    return torch.autocast(torch.device(device).type, AUTOCAST.get(precision, torch.bfloat16), enabled=enabled)
