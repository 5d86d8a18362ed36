"""The training loop, for every objective: next batch, loss, backward, step, then the hooks.

The loss of a step is the mean over the labels of the whole global batch. Each micro-batch gives a sum
in nats; the number of labels is summed over all ranks before the first backward, so that every
gradient is already the global one, whatever the number of ranks and micro-batches:

    gradient = sum over ranks and micro-batches of d(sum of nats) / (labels of the global batch)

A step whose loss or gradient is not finite is skipped by all ranks together and counted. A signal is
obeyed at the end of the step, again by all ranks together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Sequence

import torch
from torch.nn.parallel import DistributedDataParallel

from stages.entry import signals
from stages.errors import Failed, Stopped
from stages.perplexity import to_tensors
from stages.train.batches import Batches, StepBatches
from stages.train.objective import autocast
from stages.train.run import TrainingRun
from stages.train.schedule import lr_multiplier


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: nats a label over the global batch.
        stopping: some rank has received a signal; this step is the last one of this process.
        seconds: of the step alone, without hooks.
    """

    loss: float
    grad_norm: float
    lr_multiplier: float
    n_labels: int
    skipped: bool
    stopping: bool
    seconds: float
    data_wait_seconds: float


class Hook:
    """Something that looks at a run. `after_step` runs after every step, in the order of the hooks."""

    def start(self, run: TrainingRun) -> None:
        """Before the first step of this process."""

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        """After step `run.state.step` (from 1)."""

    def close(self, run: TrainingRun) -> None:
        """At the end, also after an error or a signal."""


def train(run: TrainingRun, hooks: Sequence[Hook]) -> None:
    """Runs until `max_steps`.

    Raises:
        Stopped: a signal came; the last hook has written a checkpoint.
        Failed: too many steps in a row were not finite.
    """
    batches = Batches(
        run.train_rows, run.params.seed, run.rows_per_step, run.ranks.rank, run.ranks.world, run.micro_batch,
        run.state.step,
    )  # fmt: skip
    try:
        with signals.wait():
            for hook in hooks:
                hook.start(run)
            while run.state.step < run.params.max_steps:
                result = train_step(run, batches)
                for hook in hooks:
                    hook.after_step(run, result)
                if run.state.consecutive_skipped >= run.params.max_skipped_steps:
                    raise Failed(diverged(run))
                if result.stopping and run.state.step < run.params.max_steps:
                    raise Stopped(f"a signal after step {run.state.step}")
    finally:
        for hook in hooks:
            hook.close(run)
        batches.close()


def train_step(run: TrainingRun, batches: Batches) -> StepResult:
    """One optimizer step; moves `run.state` by one."""
    started = time.perf_counter()
    step_batches = batches.next()
    waited = time.perf_counter() - started
    n_labels = int(run.ranks.sum([step_batches.n_labels])[0])
    nats = accumulate_gradients(run, step_batches, n_labels)
    parameters = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    clip = run.params.grad_clip or float("inf")
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
    total_nats, stops = run.ranks.sum([nats, float(signals.received is not None)])
    loss = total_nats / n_labels
    multiplier = lr_multiplier(run.state.step, run.params)
    finite = torch.isfinite(torch.tensor([loss, grad_norm])).all().item()
    state = run.state
    if finite:
        run.optimizers.step(multiplier)
        state.consecutive_skipped = 0
        state.observe(loss)
    else:
        state.skipped_steps += 1
        state.consecutive_skipped += 1
    run.optimizers.zero_grad()
    for experts in run.experts:
        run.ranks.sum_(experts.counts)
        experts.end_step()
    state.step += 1
    state.tokens += n_labels
    seconds = time.perf_counter() - started
    return StepResult(loss, grad_norm, multiplier, n_labels, not finite, stops > 0, seconds, waited)


def accumulate_gradients(run: TrainingRun, batches: StepBatches, n_labels: int) -> float:
    """Adds the gradient of the global mean loss; returns the nats of cross-entropy of this rank.

    DDP averages over ranks, so the local sum is scaled up by their number. Only the last micro-batch
    communicates.
    """
    nats = torch.zeros((), dtype=torch.float64, device=run.ranks.device)
    if run.model.config.dropout:  # of the step, not of what was drawn before, so that a resumed run drops the same
        torch.manual_seed(dropout_seed(run.params.seed, run.state.step, run.ranks.rank))
    for i, batch in enumerate(batches.micro_batches):
        last = i == len(batches.micro_batches) - 1
        silent = isinstance(run.objective, DistributedDataParallel) and not last
        with run.objective.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(run.ranks.device, run.params.precision):
                loss, cross_entropy = run.objective(*to_tensors(batch, run.ranks.device))
            (loss * (run.ranks.world / n_labels)).backward()
        nats += cross_entropy.detach()
    return float(nats)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7], "big")


def diverged(run: TrainingRun) -> str:
    return (
        f"{run.state.consecutive_skipped} steps in a row up to step {run.state.step} had a loss or gradient that is "
        "not finite; lower train.lr and train.muon_lr, or raise train.warmup_steps"
    )
