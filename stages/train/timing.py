"""Speed and memory of a training, for timing.json: nothing depends on it, so it may differ every time.

Only training steps count: validation, checkpoints and the first steps, in which kernels are compiled,
do not, except in the rate while nothing else is known. After a resume the figures are those of the resumed part.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from model.size import flops_per_token
from stages.train.peaks import peak_flops

if TYPE_CHECKING:
    from stages.train.run import TrainingRun
    from stages.train.step import StepResult

WARM_UP_STEPS = 2


class Timing:
    """Sums over the steps after the first ones."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.all_tokens = 0
        self.all_seconds = 0.0
        self.lap_start = (0, 0.0)
        self.lap_tokens_per_s = 0.0

    def add(self, result: StepResult) -> None:
        self.steps += 1
        self.all_tokens += result.n_labels
        self.all_seconds += result.seconds
        if self.steps > WARM_UP_STEPS:
            self.tokens += result.n_labels
            self.seconds += result.seconds
            self.waited += result.data_wait_seconds

    @property
    def tokens_per_s(self) -> float:
        if self.seconds:
            return self.tokens / self.seconds
        return self.all_tokens / self.all_seconds if self.all_seconds else 0.0

    def lap(self) -> None:
        """Sets `lap_tokens_per_s` to the rate since the last call."""
        tokens, seconds = self.tokens - self.lap_start[0], self.seconds - self.lap_start[1]
        self.lap_tokens_per_s = tokens / seconds if seconds else self.tokens_per_s
        self.lap_start = (self.tokens, self.seconds)

    @property
    def seconds_per_step(self) -> float:
        counted = self.steps - WARM_UP_STEPS
        return self.seconds / counted if counted > 0 else self.all_seconds / max(self.steps, 1)

    @property
    def data_wait_ratio(self) -> float:
        """The part of the time in which training waited for data."""
        return self.waited / self.seconds if self.seconds else 0.0

    def mfu(self, run: TrainingRun) -> float | None:
        """The part of the devices' peak that the model's arithmetic takes; None where the peak is not known."""
        device = run.ranks.device
        peak = peak_flops(torch.cuda.get_device_name(device), run.params.precision) if is_gpu(device) else None
        rows = run.train_rows
        per_token = flops_per_token(run.model.config, rows.vocab_size, rows.context_length)
        return self.tokens_per_s * per_token / (peak * run.ranks.world) if peak else None

    def peak_bytes(self, run: TrainingRun) -> int:
        """The most memory held at once: by the GPU's allocator, or by this process."""
        if is_gpu(run.ranks.device):
            return torch.cuda.max_memory_allocated(run.ranks.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def report(self, run: TrainingRun) -> dict[str, float | int | None]:
        """The content of timing.json; `mfu` is null where the peak of the device is not known."""
        mfu = self.mfu(run)
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "mfu": None if mfu is None else round(mfu, 4),
            "peak_bytes": self.peak_bytes(run),
            "data_wait_ratio": round(self.data_wait_ratio, 5),
            "seconds": round(self.all_seconds, 2),
        }


def is_gpu(device: str) -> bool:
    return device.startswith("cuda")
