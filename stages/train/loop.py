"""The training loop, for every objective: next batch, loss, backward, step, then the hooks.

The loss of a step is the mean over the labels of the whole global batch, whatever the number of ranks and
micro-batches (gradients.py).

A step whose loss or gradient is not finite is skipped by all ranks together and counted. The device
decides that, and the processor runs ahead of it: it waits for results only where somebody needs them
(on CPUs, where waiting is free, after every step; else for a log line, a validation, a checkpoint, or a
signal, of which the processors of all ranks tell each other at every step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from stages.errors import Failed, Stopped
from stages.signals import signals
from stages.train.batches import Batches
from stages.train.gradients import gradient_of_step
from stages.train.run import TrainingRun
from stages.train.scaler import HALVINGS
from stages.train.schedule import lr_multiplier
from stages.train.step import Hook, Launched, StepResult
from stages.train.timing import WARM_UP_STEPS
from stages.wording import counted


def train(run: TrainingRun, hooks: Sequence[Hook]) -> None:
    """Runs until `max_steps`, or until `patience` ends it.

    Raises:
        Stopped: a signal came; the last hook has written a checkpoint.
        Failed: too many steps in a row were not finite.
    """
    batches = Batches(
        run.train_rows, run.params.seed, run.rows_per_step, run.ranks.rank, run.ranks.world, run.micro_batch,
        run.state.step, run.ranks.device,
    )  # fmt: skip
    acting = [hook for hook in hooks if hook.every_rank or run.ranks.first]
    try:
        with signals.wait():
            for hook in acting:
                hook.start(run)
            first = run.state.step
            while not run.finished:
                started = time.perf_counter()
                launched: list[Launched] = []
                while not launched or not must_wait(run, hooks, run.state.step + len(launched), first):
                    launched.append(launch_step(run, acting, batches, run.state.step + len(launched)))
                settle(run, acting, launched, started)
    finally:
        for hook in acting:
            hook.close(run)
        batches.close()


def must_wait(run: TrainingRun, hooks: Sequence[Hook], step: int, first: int) -> bool:
    """Whether results are needed after this step. The first steps compile, and are timed one by one."""
    if run.ranks.device == "cpu" or step - first <= WARM_UP_STEPS or step == run.params.max_steps:
        return True
    if run.ranks.any(signals.received is not None):
        return True
    return any(hook.needs(run, step) for hook in hooks)


def launch_step(run: TrainingRun, hooks: Sequence[Hook], batches: Batches, step: int) -> Launched:
    """One optimizer step, handed to the device."""
    started = time.perf_counter()
    step_batches = batches.next()
    waited = time.perf_counter() - started
    nats, grad_norm = gradient_of_step(run, step_batches, step)
    figures = torch.stack([nats / step_batches.n_labels, grad_norm.double()])
    multiplier = lr_multiplier(step, run.params)
    finite = torch.isfinite(figures).all()
    for hook in hooks:
        hook.before_update(run, step + 1, grad_norm)
    run.optimizers.step(multiplier, finite)
    if run.average is not None:
        run.average.update(step, finite)
    if not run.micro_step.replaces:
        run.optimizers.zero_grad(set_to_none=not run.keeps_gradients)
    if run.scaler:
        run.scaler.update(finite)
    for experts in run.experts:
        run.ranks.sum_(experts.counts)
        experts.end_step(finite)
    return Launched(figures, multiplier, step_batches.n_labels, waited)


def settle(run: TrainingRun, hooks: Sequence[Hook], launched: list[Launched], started: float) -> None:
    """Waits for the launched steps, moves `run.state` over each of them and shows it to the hooks."""
    figures = torch.stack([step.figures for step in launched]).tolist()
    seconds = (time.perf_counter() - started) / len(launched)
    stopping = run.ranks.sum([float(signals.received is not None)])[0] > 0
    for step, (loss, grad_norm) in zip(launched, figures, strict=True):
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        run.state.advance(loss, step.n_labels, finite)
        result = StepResult(
            loss, grad_norm, step.lr_multiplier, step.n_labels, not finite, stopping and step is launched[-1], seconds,
            step.data_wait_seconds,
        )  # fmt: skip
        for hook in hooks:
            hook.after_step(run, result)
        if run.state.consecutive_skipped >= run.params.max_skipped_steps + (HALVINGS if run.scaler else 0):
            raise Failed(diverged(run))
    if stopping and not run.finished:
        raise Stopped(f"a signal after step {run.state.step}")


def diverged(run: TrainingRun) -> str:
    return (
        f"{counted(run.state.consecutive_skipped, 'step')} in a row up to step {run.state.step} had a loss or gradient "
        "that is not finite; lower train.lr and train.muon_lr, or raise train.warmup_steps"
    )
