"""Lion (Chen et al., 2023): the sign of an interpolated momentum. One state a parameter, and steps of one size.

    p  <-  (1 - lr * weight_decay) p - lr * sign(beta1 * m + (1 - beta1) * g)
    m  <-  beta2 * m + (1 - beta2) * g

Example: p = 1, m = 0, g = -0.3, lr = 0.1, no decay: p = 1.1 and, with beta2 = 0.99, m = -0.003. Steps are larger than
Adam's, so its rate is 3 to 10 times lower and its weight decay as much higher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(list(groups), {"lr": lr, "betas": betas, "weight_decay": 0.0})

    found_inf: Tensor | None = None  # a 1 leaves everything as it is, as with torch's fused optimizers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                keep = torch.zeros((), device=parameter.device) if self.found_inf is None else self.found_inf
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                gradient = torch.where(keep > 0, momentum, gradient)  # which moves a mean by nothing
                rate = group["lr"] * (1 - keep)
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.sub_(torch.sign(momentum.lerp(gradient, 1 - beta1)) * rate)
                momentum.lerp_(gradient, 1 - beta2)
