"""The factor of the loss under fp16, whose smallest number is 6e-8: without it most gradients would be zero.

After a step with an infinite gradient, which is skipped, the factor is halved; after 2,000 good steps in a row it is
doubled (Micikevicius et al., 2018). All of it happens on the device; nobody waits for the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.train.parts import Stored

FIRST = 65536.0
GROWTH_STEPS = 2000
HALVINGS = 16  # from FIRST to 1: so many steps more may be skipped in a row before a run counts as diverged


class LossScaler:
    """A component of checkpoints: the factor and the number of good steps since it last changed."""

    def __init__(self, device: str):
        self.factor = torch.full((), FIRST, device=device)
        self.good_steps = torch.zeros((), device=device)

    def unscale_(self, gradients: list[Tensor]) -> None:
        torch._foreach_mul_(gradients, 1.0 / self.factor)

    def update(self, finite: Tensor) -> None:
        """Moves over one step."""
        good = torch.where(finite, self.good_steps + 1, 0.0)
        grown = good >= GROWTH_STEPS
        self.factor.copy_(torch.where(finite, torch.where(grown, self.factor * 2, self.factor), self.factor / 2))
        self.good_steps.copy_(torch.where(grown, 0.0, good))

    def tensors(self) -> dict[str, Tensor]:
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load(self, tensors: Mapping[str, Stored]) -> None:
        self.factor.copy_(tensors["factor"].whole())
        self.good_steps.copy_(tensors["good_steps"].whole())
