"""Mixture of experts (Shazeer et al., 2017; Mixtral, 2024): each token goes through k of E gated MLPs.

    logits = router(x);  the k largest, softmax over those k;  y = sum of weight * expert(x)

Example with k = 2 and logits 3, 1, 0, 2: experts 0 and 3 with weights 0.73 and 0.27. Tokens are
sorted by expert, so that each expert is one matrix product over its tokens (grouped_mm on GPUs).

Two losses, each a sum over tokens, keep the router healthy (Fedus et al., 2021; Zoph et al., 2022):

    balance    E * sum over e of load_e * p_e(x)    1 a token where all is even
    z          logsumexp(logits)^2

`load` is the share of choices that each expert had in the last optimizer step, over its whole global
batch. With the share of the running step the loss would depend on how a batch is cut into
micro-batches, since it is a product of two means. `counts` gathers the shares of the step that runs;
the training loop sums it over ranks and calls `end_step`.

Shapes: N tokens, C hidden, F width of an expert, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.context import Context
from model.mlp import GATES, GatedMLP


class Experts(nn.Module):
    """The MLP of a layer with experts."""

    load: Tensor
    counts: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, C, width = config.n_experts, config.hidden_size, config.width_of_expert
        self.per_token = config.experts_per_token
        self.balance_loss, self.router_z_loss = config.balance_loss, config.router_z_loss
        self.activation = GATES[config.mlp]
        self.router = nn.Linear(C, E, bias=False)
        self.gate = nn.Parameter(torch.empty(E, width, C))
        self.up = nn.Parameter(torch.empty(E, width, C))
        self.down = nn.Parameter(torch.empty(E, C, width))
        self.shared = GatedMLP(config, config.n_shared_experts * width) if config.n_shared_experts else None
        self.register_buffer("load", torch.full((E,), 1 / E))
        self.register_buffer("counts", torch.zeros(E, dtype=torch.float64), persistent=False)

    def forward(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """What the experts make of x, and the sum of both losses while training."""
        x_NC = x_BTC.flatten(0, 1)
        with torch.autocast(x_BTC.device.type, enabled=False):
            logits_NE = F.linear(x_NC.float(), self.router.weight.float())
        chosen_NK, weight_NK = self.route(logits_NE)
        loss = self.observe(logits_NE, chosen_NK, context) if self.training else None
        y_NC = self.apply_experts(x_NC, chosen_NK, weight_NK)
        y_BTC = y_NC.view_as(x_BTC)
        return (y_BTC if self.shared is None else y_BTC + self.shared(x_BTC)), loss

    def route(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their weights, which sum to 1."""
        top_NK, chosen_NK = logits_NE.topk(self.per_token, dim=-1)
        return chosen_NK, top_NK.softmax(dim=-1)

    def apply_experts(self, x_NC: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """The weighted sum of the chosen experts, [N, C]."""
        order = chosen_NK.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts_E = F.one_hot(chosen_NK, self.router.out_features).sum(dim=(0, 1))
        dtype = (
            torch.get_autocast_dtype(x_NC.device.type) if torch.is_autocast_enabled(x_NC.device.type) else x_NC.dtype
        )
        x = Reorder.apply(x_NC.to(dtype).repeat_interleave(self.per_token, dim=0), order, inverse)
        gate, up, down = (w.to(dtype) for w in (self.gate, self.up, self.down))
        y = grouped(self.activation(grouped(x, gate, counts_E)) * grouped(x, up, counts_E), down, counts_E)
        y_NKC = Reorder.apply(y, inverse, order).view(*chosen_NK.shape, -1)
        return (y_NKC * weight_NK.to(dtype)[..., None]).sum(dim=1)

    def observe(self, logits_NE: Tensor, chosen_NK: Tensor, context: Context) -> Tensor:
        """Counts choices; the sum of both losses. Both are over tokens that are not padding."""
        segments = context.places.segments
        real_N = torch.ones_like(logits_NE[:, 0]) if segments is None else (segments.flatten() >= 0).to(logits_NE.dtype)
        with torch.no_grad():
            chosen = F.one_hot(chosen_NK, logits_NE.shape[-1]).sum(dim=1).to(logits_NE.dtype)
            self.counts += (chosen * real_N[:, None]).sum(dim=0)
        balance = logits_NE.shape[-1] * (logits_NE.softmax(dim=-1) * self.load).sum(dim=-1)
        z = logits_NE.logsumexp(dim=-1).square()
        return ((self.balance_loss * balance + self.router_z_loss * z) * real_N).sum()

    @torch.no_grad()
    def end_step(self, finite: Tensor | bool = True) -> None:
        """The shares of this step become `load`, unless it was skipped or had no token. Nobody waits for the device."""
        total = self.counts.sum()
        self.load.copy_(torch.where((total > 0) & finite, self.counts / total.clamp(min=1), self.load))
        self.counts.zero_()


class Reorder(torch.autograd.Function):
    """x[order], whose gradient is g[inverse]: two reads, where autograd would add rows up one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


def grouped(x_NC: Tensor, weight_EFC: Tensor, counts_E: Tensor) -> Tensor:
    """Row n of x, sorted by expert, times the matrix of its expert, [N, F]."""
    whole_words = weight_EFC.shape[-1] % 8 == 0 and weight_EFC.shape[-2] % 8 == 0  # 16 bytes, as the kernel asks
    if x_NC.is_cuda and x_NC.dtype == torch.bfloat16 and whole_words:
        return F.grouped_mm(x_NC, weight_EFC.transpose(-1, -2), offs=counts_E.cumsum(0).int())
    parts = x_NC.split(counts_E.tolist())
    return torch.cat([part @ weight.t() for part, weight in zip(parts, weight_EFC, strict=True)])
