"""The learning rate as a multiple of its peak, a function of the step alone.

    warm-up   (step + 1) / W                 for the first W steps
    linear    falls to min, which the step after the last one would have
    cosine    half a cosine from 1 to min (Loshchilov and Hutter, 2017)
    wsd       1, then linear to min over the last `decay_ratio` of all steps (Hu et al., 2024)
    constant  1

Example, linear with N = 10, W = 2, min 0: 0.5, 1, 1, 0.875, 0.75 ... 0.125. The step after the last
one would be at min.
"""

from __future__ import annotations

import math

from stages.train.params import TrainParams


def lr_multiplier(step: int, params: TrainParams) -> float:
    """The multiple of the peak rate in optimizer step `step`, counted from 0."""
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    progress = (step - params.warmup_steps) / (params.max_steps - params.warmup_steps)
    floor = params.min_lr_ratio
    if params.schedule == "constant":
        return 1.0
    if params.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if params.schedule == "wsd":
        decay_steps = params.decay_ratio * params.max_steps
        return floor + (1 - floor) * min(1.0, (params.max_steps - step) / decay_steps)
    return floor + (1 - floor) * (1 - progress)
