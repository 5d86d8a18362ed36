"""What decides beside the loop: validation, which finds the best step and ends a run early, and checkpoints.

The order of hooks matters: validation sets `state.validation_loss`, the log (log.py) writes it down, the
checkpoint comes last and holds both. All of them act on step numbers alone, so a resumed run does the same.
"""

from __future__ import annotations

import math

import numpy as np

from stages.perplexity import ROWS_PER_FORWARD, split_loss
from stages.tokens import TokenRows
from stages.train.run import TrainingRun
from stages.train.saving import Saver
from stages.train.step import Hook, StepResult


class Validation(Hook):
    """The loss of a fixed part of the validation split at step 0, every `eval_interval` and at the end.

    Ranks share its rows, and the training clock does not run meanwhile. With `train.ema_decay` it is the loss of the
    averaged weights, by which the best step is found; that of the weights in training is told beside it.
    """

    def start(self, run: TrainingRun) -> None:
        self.row_ids = validation_row_ids(run.validation_rows, run.params.validation_tokens)
        if run.state.step == 0:
            run.state.patience_reference, run.state.validations_without_improvement = None, 0  # also after a resume
            self.validate(run)

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.params.eval_interval == 0 or step == run.params.max_steps

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        run.state.validation_loss = run.state.validation_loss_raw = None
        if self.needs(run, run.state.step):
            self.validate(run)

    def validate(self, run: TrainingRun) -> None:
        with run.published_weights():
            loss = self.loss(run)
        run.state.validation_loss = finite_or_none(loss)
        run.state.validation_loss_raw = None if run.average is None else finite_or_none(self.loss(run))
        best = run.state.best_validation_loss
        if math.isfinite(loss) and (best is None or loss < best):
            run.state.best_validation_loss, run.state.best_step = loss, run.state.step
        run.state.count_patience(loss, run.params.min_delta)

    def loss(self, run: TrainingRun) -> float:
        """Of the weights that the model has."""
        mine = self.row_ids[run.ranks.rank :: run.ranks.world]
        run.model.eval()
        with run.autocast():
            sums = split_loss(run.model, run.validation_rows, mine, run.ranks.device)
            if run.sharded and n_passes(mine) < n_passes(self.row_ids[:: run.ranks.world]):  # all gather equally often
                split_loss(run.model, run.validation_rows, self.row_ids[:1], run.ranks.device)
        nats, labels = run.ranks.sum(sums)
        run.model.train()
        return nats / labels


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def n_passes(row_ids: np.ndarray) -> int:
    """Forward passes of `split_loss`."""
    return -(-len(row_ids) // ROWS_PER_FORWARD)


def validation_row_ids(rows: TokenRows, tokens: int) -> np.ndarray:
    """Rows of about so many tokens, spread evenly over the split; the same for every run on this split."""
    wanted = min(rows.n_rows, max(1, tokens // rows.context_length))
    return np.linspace(0, rows.n_rows - 1, wanted).astype(np.int64)


class Checkpoint(Hook):
    """Saves at step 0, every `checkpoint_interval`, at each new best, on a signal and at the end, early or not.

    The training waits for copies alone; what the disk refuses is raised at the next step (saving.py).
    """

    saver: Saver | None = None  # of the first rank; of a model in parts, of every rank

    def start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            run.checkpoints.remove_halves()
        if run.ranks.first or run.sharded:
            self.saver = Saver()
        if run.sharded:
            run.ranks.barrier()  # nobody writes into what the first rank removes
        if run.state.step == 0:
            self.save(run)

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.execution.checkpoint_interval == 0 or step == run.params.max_steps

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        step = run.state.step
        if self.saver is not None:
            self.saver.check()
        if self.needs(run, step) or run.state.best_step == step or result.stopping or run.finished:
            self.save(run)
        if result.stopping or run.finished:  # a rank that ends with another code than 0 has torchrun end the others
            if self.saver is not None:
                self.saver.wait()
            run.ranks.barrier()

    def save(self, run: TrainingRun) -> None:
        if self.saver is not None:
            rank, world = (run.ranks.rank, run.ranks.world) if run.sharded else (0, 1)
            with run.published_weights():
                run.checkpoints.save(
                    self.saver, run.state, run.model, run.optimizers, run.config, run.components, rank, world
                )

    def close(self, run: TrainingRun) -> None:
        if self.saver is not None:
            self.saver.close()
