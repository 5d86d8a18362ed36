"""What happens beside the loop: validation, logs, checkpoints. Each is a hook of a few lines.

Their order matters: validation sets `state.validation_loss`, the log writes it down, the checkpoint
comes last and holds both. All of them act on step numbers alone, so a resumed run does the same.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.perplexity import split_loss
from stages.progress import say
from stages.tokens import TokenRows
from stages.tracking import Run
from stages.train.run import TrainingRun
from stages.train.saving import Saver
from stages.train.step import Hook, StepResult
from stages.train.timing import Timing

CSV_COLUMNS = ("step", "tokens", "loss", "loss_smooth", "lr", "grad_norm", "validation_loss")


class Validation(Hook):
    """The loss of a fixed part of the validation split at step 0, every `eval_interval` and at the end.

    Ranks share its rows, and the training clock does not run meanwhile.
    """

    def start(self, run: TrainingRun) -> None:
        self.row_ids = validation_row_ids(run.validation_rows, run.params.validation_tokens)
        if run.state.step == 0:
            self.validate(run)

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.params.eval_interval == 0 or step == run.params.max_steps

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        run.state.validation_loss = None
        if self.needs(run, run.state.step):
            self.validate(run)

    def validate(self, run: TrainingRun) -> None:
        mine = self.row_ids[run.ranks.rank :: run.ranks.world]
        run.model.eval()
        nats, labels = run.ranks.sum(split_loss(run.model, run.validation_rows, mine, run.ranks.device))
        run.model.train()
        loss = nats / labels
        run.state.validation_loss = loss if math.isfinite(loss) else None
        best = run.state.best_validation_loss
        if math.isfinite(loss) and (best is None or loss < best):
            run.state.best_validation_loss, run.state.best_step = loss, run.state.step


def validation_row_ids(rows: TokenRows, tokens: int) -> np.ndarray:
    """Rows of about so many tokens, spread evenly over the split; the same for every run on this split."""
    wanted = min(rows.n_rows, max(1, tokens // rows.context_length))
    return np.linspace(0, rows.n_rows - 1, wanted).astype(np.int64)


class Log(Hook):
    """loss.csv with every step, training.log for people, a bar on a terminal, and MLflow.

    After a resume both files lose the steps that the checkpoint does not have, so none stands twice.
    """

    def __init__(self, tracked: Run, timing: Timing):
        self.tracked, self.timing = tracked, timing

    def start(self, run: TrainingRun) -> None:
        step = run.state.step
        self.csv_path, self.log_path = run.folder / "loss.csv", run.folder / "training.log"
        if step == 0:
            self.csv_path.write_text(",".join(CSV_COLUMNS) + "\n")
            self.log_path.write_text("")
        else:
            keep_lines(self.csv_path, step, lambda line: line.split(",")[0])
            keep_lines(self.log_path, step, lambda line: line.split()[1])
        # line by line: the checkpoint of a step must not be on the disk before its line is
        self.csv_file, self.log_file = self.csv_path.open("a", buffering=1), self.log_path.open("a", buffering=1)
        self.csv_writer = csv.writer(self.csv_file, lineterminator="\n")
        self.bar = tqdm(
            total=run.params.max_steps, initial=step, desc="train", unit=" steps", disable=None, dynamic_ncols=True
        )
        if step == 0:
            self.write_csv(run, None)
            loss = run.state.validation_loss
            self.write_line(run, f"step 0 validation {math.nan if loss is None else loss:.4f}")
            self.tracked.metrics(0, {} if loss is None else {"validation_loss": loss})

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.execution.log_interval == 0

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        state = run.state
        self.timing.add(result)
        self.write_csv(run, result)
        self.bar.update()
        rate = self.timing.tokens_per_s
        self.bar.set_postfix(loss=f"{state.loss_smooth or math.nan:.3f}", tok_s=f"{rate:.0f}", refresh=False)
        if result.skipped:
            self.write_line(run, f"step {state.step} SKIPPED: loss {result.loss} grad_norm {result.grad_norm}")
        validated = state.validation_loss is not None
        if state.step % run.execution.log_interval == 0 or validated:
            smooth = state.loss_smooth or math.nan
            line = (
                f"step {state.step} tokens {state.tokens} loss {result.loss:.4f} smooth {smooth:.4f} "
                f"lr {result.lr_multiplier * run.params.lr:.2e} grad_norm {result.grad_norm:.3f} tokens/s {rate:.0f}"
            )
            if validated:
                line += f" validation {state.validation_loss:.4f}"
                line += " NEW BEST" if state.best_step == state.step else ""
            self.write_line(run, line)
            self.tracked.metrics(state.step, self.figures(run, result))

    def figures(self, run: TrainingRun, result: StepResult) -> dict[str, float]:
        state = run.state
        figures = {
            "loss": result.loss,
            "loss_smooth": state.loss_smooth,
            "lr": result.lr_multiplier * run.params.lr,
            "grad_norm": result.grad_norm,
            "tokens": state.tokens,
            "tokens_per_s": self.timing.tokens_per_s,
            "validation_loss": state.validation_loss,
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

    def write_line(self, run: TrainingRun, line: str) -> None:
        self.log_file.write(line + "\n")
        self.bar.write(line) if not self.bar.disable else say(line)

    def close(self, run: TrainingRun) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
            self.csv_file.close()
            self.log_file.close()


def keep_lines(path: Path, last_step: int, step_of: Callable[[str], str]) -> None:
    """Drops the lines of steps after `last_step`, and a half-written last line; keeps a header."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith("\n"):
            continue
        number = step_of(line)
        if not number.isdigit() or int(number) <= last_step:
            kept.append(line)
    beside = path.with_suffix(".partial")
    beside.write_text("".join(kept))
    beside.replace(path)


class Checkpoint(Hook):
    """Saves at step 0, every `checkpoint_interval`, at each new best, on a signal and at the end.

    The training waits for copies alone; what the disk refuses is raised at the next step (saving.py).
    """

    saver: Saver | None = None  # of the first rank

    def start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            self.saver = Saver()
        if run.state.step == 0:
            self.save(run)

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.execution.checkpoint_interval == 0 or step == run.params.max_steps

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        step = run.state.step
        if self.saver is not None:
            self.saver.check()
        if self.needs(run, step) or run.state.best_step == step or result.stopping:
            self.save(run)
        if result.stopping:  # the first rank that ends with another code than 0 has torchrun end the others
            if self.saver is not None:
                self.saver.wait()
            run.ranks.barrier()

    def save(self, run: TrainingRun) -> None:
        if self.saver is not None:
            run.checkpoints.save(self.saver, run.state, run.model, run.optimizers, run.config, run.components)

    def close(self, run: TrainingRun) -> None:
        if self.saver is not None:
            self.saver.close()
