"""The gradient of a step: of the mean loss over the labels of the global batch, clipped.

Each micro-batch gives a sum in nats; dividing by the labels of all ranks and micro-batches makes every part of the
gradient the global one:

    gradient = sum over ranks and micro-batches of d(sum of nats) / (labels of the global batch)
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from stages.train.batches import StepBatches
from stages.train.feasible import has_own_parts
from stages.train.own_parts import without_gradient
from stages.train.run import TrainingRun
from stages.train.sharding import clip_grad_norm_


def gradient_of_step(run: TrainingRun, batches: StepBatches, step: int) -> tuple[Tensor, Tensor]:
    """Leaves the gradient in the parameters; returns the nats of all ranks, float64 [], and its norm before clipping.

    Raises:
        BadInput: the loss does not depend on some parameter of a part of one's own.
    """
    nats = accumulate_gradients(run, batches, step)
    run.ranks.sum_(nats)
    if missing := run.exchange.without_gradient(run.model):
        raise without_gradient(missing[0])
    parameters = run.optimizers.with_gradients()
    if run.scaler:
        run.scaler.unscale_([parameter.grad for parameter in parameters if parameter.grad is not None])
    return nats, clip_grad_norm_(parameters, run.params.grad_clip or float("inf"), run.ranks, run.sharded)


def accumulate_gradients(run: TrainingRun, batches: StepBatches, step: int) -> Tensor:
    """Adds the gradient of the global mean loss; returns the nats of cross-entropy of this rank, float64 [].

    Behind the last micro-batch gradients are summed over all ranks (exchange.py).
    """
    nats = torch.zeros((), dtype=torch.float64, device=run.ranks.device)
    factor: float | Tensor = run.exchange.factor / batches.n_labels
    if run.scaler:
        factor = run.scaler.factor * factor
    if run.model.config.dropout or has_own_parts(
        run.model.config
    ):  # of the step, not of what was drawn before, so that a resumed run drops the same
        torch.manual_seed(dropout_seed(run.params.seed, step, run.ranks.rank))
    for i, batch in enumerate(batches.micro_batches):
        run.exchange.begin(last=i == len(batches.micro_batches) - 1)
        nats += run.micro_step(batch, factor)
    run.exchange.end()
    return nats


def dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7], "big")
