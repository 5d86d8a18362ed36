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


class CausalObjective(nn.Module):
    """Sums over the labels of a micro-batch; logits and losses in fp32."""

    def __init__(self, model: Decoder, z_loss: float = 0.0):
        super().__init__()
        self.model, self.z_loss = model, z_loss

    def forward(
        self, inputs_BT: Tensor, labels_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor,
        n_documents: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is minimised, and its part that is cross-entropy."""
        context = self.model.context(inputs_BT, segments_BT, positions_BT, n_documents)
        total, nats = self.of_hidden(self.model.hidden(inputs_BT, context), labels_BT)
        for loss in context.losses:
            total = total + loss
        return total, nats

    def of_hidden(self, hidden_BTC: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the last hidden states, without the losses of blocks."""
        logits_NV = self.model.logits(hidden_BTC).flatten(0, 1).float()
        labels_N = labels_BT.flatten()
        total = nats = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
        if self.z_loss:  # keeps the normaliser of the softmax near 1 (PaLM, 2022)
            total = total + self.z_loss * (logits_NV.logsumexp(dim=-1).square() * (labels_N != IGNORED_LABEL)).sum()
        return total, nats


def compile_parts(objective: nn.Module) -> None:
    """Compiles every block by itself, and the head with its loss.

    Blocks of one kind share their compiled code, so that it takes seconds where the whole takes minutes, at
    equal speed. Masks are made outside: their cost is paid once and not traced.
    """
    for block in objective.model.blocks:  # type: ignore[union-attr]
        block.compile(dynamic=False)
    if isinstance(objective, CausalObjective):
        objective.of_hidden = torch.compile(objective.of_hidden, dynamic=False)  # type: ignore[method-assign]


OBJECTIVES: dict[str, type[CausalObjective]] = {"causal": CausalObjective}


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of the forward pass: bf16 for matrix products, or fp32 throughout."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
