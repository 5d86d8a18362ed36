"""Speed and memory of a training, for timing.json: nothing depends on it, so it may differ every time.

Only training steps count: validation, checkpoints and the first steps, in which kernels are compiled,
do not, except in the rate while nothing else is known. After a resume the figures are those of the resumed part.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from model.size import flops_per_token

if TYPE_CHECKING:
    from stages.train.run import TrainingRun
    from stages.train.step import StepResult

WARM_UP_STEPS = 2
# Dense bf16 peaks in FLOP/s by name of the device, from the vendor's data sheets; fp32 here means TF32 off.
PEAK_FLOPS = {
    "bf16": {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12},
    "fp8": {"H200": 1979e12, "H100": 1979e12, "L40S": 733e12, "RTX 4090": 330e12},
    "fp32": {"H200": 67e12, "H100": 67e12, "A100": 19.5e12, "L40S": 91.6e12, "RTX 4090": 82.6e12},
}


class Timing:
    """Sums over the steps after the first ones."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.all_tokens = 0
        self.all_seconds = 0.0

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

    def report(self, run: TrainingRun) -> dict[str, float | int | None]:
        """The content of timing.json; `mfu` is null where the peak of the device is not known."""
        peak = peak_flops(run.ranks.device, run.params.precision)
        rows = run.train_rows
        per_token = flops_per_token(run.model.config, rows.vocab_size, rows.context_length)
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "mfu": round(self.tokens_per_s * per_token / (peak * run.ranks.world), 4) if peak else None,
            "peak_bytes": peak_bytes(run.ranks.device),
            "data_wait_ratio": round(self.waited / self.seconds, 5) if self.seconds else 0.0,
            "seconds": round(self.all_seconds, 2),
        }


def peak_flops(device: str, precision: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device)
    peaks = PEAK_FLOPS["bf16" if precision == "fp16" else precision]
    return next((flops for key, flops in peaks.items() if key in name), None)


def peak_bytes(device: str) -> int:
    """The most memory held at once: of the GPU's allocator, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
