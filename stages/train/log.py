"""What a training tells while it runs: loss.csv with every step, training.log, a bar on a terminal, and MLflow.

A line of training.log has what happened in its step and how fast the steps since the last line were:

    step 100 tokens 409600 loss 3.2114 smooth 3.2671 lr 1.39e-02 grad_norm 0.412 tokens/s 4385
    mfu 41.2% memory 12.3 GiB waiting 0.02% eta 0:02:20 validation 3.3012 NEW BEST      (all on one line)

`loss` is that of the step and `smooth` its running mean. `waiting` is the part of the time in which the
processor waited for data; a GPU behind it may have had work. `mfu` is left out where the device's peak is
unknown (peaks.py).
"""

from __future__ import annotations

import csv
import math
from datetime import timedelta

from tqdm import tqdm

from stages.tracking import Run
from stages.train.journal import Journal, keep_lines
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult
from stages.train.timing import Timing

CSV_COLUMNS = ("step", "tokens", "loss", "loss_smooth", "lr", "grad_norm", "validation_loss")
GIB = 1 << 30


class Log(Hook):
    """After a resume the files lose the steps that the checkpoint does not have, so none stands twice."""

    every_rank = False

    def __init__(self, journal: Journal, tracked: Run, timing: Timing):
        self.journal, self.tracked, self.timing = journal, tracked, timing

    def start(self, run: TrainingRun) -> None:
        step = run.state.step
        self.csv_path = run.folder / "loss.csv"
        if step == 0:
            self.csv_path.write_text(",".join(CSV_COLUMNS) + "\n")
        else:
            keep_lines(self.csv_path, step, lambda line: line.split(",")[0])
        self.journal.open(step)
        self.csv_file = self.csv_path.open("a", buffering=1)  # line by line, as the journal
        self.csv_writer = csv.writer(self.csv_file, lineterminator="\n")
        self.bar = tqdm(
            total=run.params.max_steps, initial=step, desc="train", unit=" steps", disable=None, dynamic_ncols=True
        )
        self.speed = ""
        if step == 0:
            self.write_csv(run, None)
            loss = run.state.validation_loss
            self.journal.write(f"step 0 validation {math.nan if loss is None else loss:.4f}")
            self.tracked.metrics(0, {} if loss is None else {"validation_loss": loss})

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.execution.log_interval == 0

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        state = run.state
        self.timing.add(result)
        self.write_csv(run, result)
        if result.skipped:
            self.journal.write(f"step {state.step} SKIPPED: loss {result.loss} grad_norm {result.grad_norm}")
        if self.needs(run, state.step) or state.validation_loss is not None:
            self.timing.lap()
            self.speed = self.describe_speed(run)
            self.journal.write(self.line(run, result))
            self.tracked.metrics(state.step, self.figures(run, result))
        if run.stopped_early:
            self.journal.write(
                f"step {state.step} EARLY STOP: {state.validations_without_improvement} validations without an "
                f"improvement of more than {run.params.min_delta:g} over {state.patience_reference or math.nan:.4f}"
            )
        self.bar.update()
        self.bar.set_postfix_str(f"loss {state.loss_smooth or math.nan:.3f} {self.speed}", refresh=False)

    def line(self, run: TrainingRun, result: StepResult) -> str:
        state = run.state
        smooth = state.loss_smooth or math.nan
        line = (
            f"step {state.step} tokens {state.tokens} loss {result.loss:.4f} smooth {smooth:.4f} "
            f"lr {result.lr_multiplier * run.params.lr:.2e} grad_norm {result.grad_norm:.3f} {self.speed} "
            f"waiting {self.timing.data_wait_ratio:.2%} eta {self.remaining(run)}"
        )
        if state.validation_loss is not None:
            line += f" validation {state.validation_loss:.4f}"
            line += "" if state.validation_loss_raw is None else f" raw {state.validation_loss_raw:.4f}"
            line += " NEW BEST" if state.best_step == state.step else ""
        return line

    def describe_speed(self, run: TrainingRun) -> str:
        mfu = self.timing.mfu(run)
        used = "" if mfu is None else f"mfu {mfu:.1%} "
        return f"tokens/s {self.timing.lap_tokens_per_s:.0f} {used}memory {self.timing.peak_bytes(run) / GIB:.1f} GiB"

    def remaining(self, run: TrainingRun) -> timedelta:
        """The time that the steps to come will take, without validations and checkpoints."""
        steps = run.params.max_steps - run.state.step
        return timedelta(seconds=round(steps * self.timing.seconds_per_step))

    def figures(self, run: TrainingRun, result: StepResult) -> dict[str, float]:
        state = run.state
        figures = {
            "loss": result.loss,
            "loss_smooth": state.loss_smooth,
            "lr": result.lr_multiplier * run.params.lr,
            "grad_norm": result.grad_norm,
            "tokens": state.tokens,
            "tokens_per_s": self.timing.lap_tokens_per_s,
            "mfu": self.timing.mfu(run),
            "peak_bytes": self.timing.peak_bytes(run),
            "validation_loss": state.validation_loss,
            "validation_loss_raw": state.validation_loss_raw,
            "expert_load_max": max((float(e.load.max()) * len(e.load) for e in run.experts), default=None),
        }
        return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}

    def write_csv(self, run: TrainingRun, result: StepResult | None) -> None:
        state = run.state
        self.csv_writer.writerow(
            [
                state.step,
                state.tokens,
                f"{result.loss:.8g}" if result else "",
                f"{state.loss_smooth:.8g}" if state.loss_smooth is not None else "",
                f"{result.lr_multiplier * run.params.lr:.8g}" if result else "",
                f"{result.grad_norm:.8g}" if result else "",
                f"{state.validation_loss:.8g}" if state.validation_loss is not None else "",
            ]
        )

    def close(self, run: TrainingRun) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
            self.csv_file.close()
        self.journal.close()
