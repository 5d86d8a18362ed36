"""What a training step tells, and what may look at a run beside the loop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from stages.train.run import TrainingRun


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: nats a label over the global batch.
        stopping: some rank has received a signal; this step is the last one of this process.
        seconds: of the step, without hooks; a mean over the steps that were waited for together.
    """

    loss: float
    grad_norm: float
    lr_multiplier: float
    n_labels: int
    skipped: bool
    stopping: bool
    seconds: float
    data_wait_seconds: float


@dataclasses.dataclass(frozen=True)
class Launched:
    """A step whose figures are still on the device: float64 [loss, norm of the gradient]."""

    figures: Tensor
    lr_multiplier: float
    n_labels: int
    data_wait_seconds: float


class Hook:
    """Something that looks at a run. `after_step` runs once for every step, in the order of the hooks; the weights
    are those of that step where `needs` has asked for it.

    Attributes:
        every_rank: whether it acts on all ranks, or on the first alone. `needs` is asked on all of them, since
            they must wait together.
    """

    every_rank = True

    def needs(self, run: TrainingRun, step: int) -> bool:
        """Whether this hook must see the run right after this step, before the next one is launched."""
        return False

    def start(self, run: TrainingRun) -> None:
        """Before the first step of this process."""

    def before_update(self, run: TrainingRun, step: int, grad_norm: Tensor) -> None:
        """Before the optimizers make step `step` (from 1): weights are still the old ones, and gradients those that
        they will see, clipped. `grad_norm` is the norm before clipping, on the device."""

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        """After step `run.state.step` (from 1)."""

    def close(self, run: TrainingRun) -> None:
        """At the end, also after an error or a signal."""
