"""What is predicted from what. One small object per objective; the loop knows none of them.

Causal: at every slot of a packed row, the next token of the same document. The loss is a sum in
nats, so that the loop can divide by the labels of the whole global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.tokens import IGNORED_LABEL


class CausalObjective(nn.Module):
    """Sum of cross-entropies over the labels of a micro-batch; logits and loss in fp32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: Tensor, labels_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor) -> Tensor:
        logits_BTV = self.model(inputs_BT, segments_BT, positions_BT)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )


OBJECTIVES: dict[str, type[nn.Module]] = {"causal": CausalObjective}


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of the forward pass: bf16 for matrix products, or fp32 throughout."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
