"""monitor/curves.html: the curves of a training as one page that needs no network, live while it trains.

The page is written anew with the lines of the log, at most every few seconds, and reloads itself; the last
one stands still and is published with the stage. It shows loss (each step, smoothed, validation), learning
rate, norm of the gradient, and tokens a second. A long run is thinned out, to means over equal stretches:

    10,000 steps, 2,000 points at most:    a point is the mean of 5 steps
"""

from __future__ import annotations

import csv
import json
import re
import time
from array import array
from pathlib import Path

import numpy as np

from stages.progress import say
from stages.tracking import Run
from stages.train.curves_page import PAGE
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult
from stages.train.timing import Timing

SECONDS_BETWEEN = 3.0
MOST_POINTS = 2000
COLUMNS = ("step", "loss", "loss_smooth", "lr", "grad_norm")
RATE = re.compile(r"step (\d+) .*tokens/s (\d+)")


class Curves(Hook):
    """Comes after the log, whose files give the curves of the steps before a resume."""

    every_rank = False

    def __init__(self, tracked: Run, timing: Timing):
        self.tracked, self.timing = tracked, timing
        self.written = 0.0
        self.points = array("d")  # step after step, a number per column
        self.validations: list[tuple[int, float]] = []
        self.rates: list[tuple[int, float]] = []

    def start(self, run: TrainingRun) -> None:
        self.path = run.folder / "monitor" / "curves.html"
        self.path.parent.mkdir(exist_ok=True)
        self.read(run.folder)
        self.write(run, live=True)
        say(f"train: live curves in {self.path}")

    def read(self, folder: Path) -> None:
        """The steps that the log has."""
        with (folder / "loss.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["loss"]:
                    self.points.extend(float(row[name] or "nan") for name in COLUMNS)
                if row["validation_loss"]:
                    self.validations.append((int(row["step"]), float(row["validation_loss"])))
        for line in (folder / "training.log").read_text(encoding="utf-8").splitlines():
            if found := RATE.match(line):
                self.rates.append((int(found[1]), float(found[2])))

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        state = run.state
        smooth = float("nan") if state.loss_smooth is None else state.loss_smooth
        self.points.extend((state.step, result.loss, smooth, result.lr_multiplier * run.params.lr, result.grad_norm))
        if state.validation_loss is not None:
            self.validations.append((state.step, state.validation_loss))
        if state.step % run.execution.log_interval == 0:
            self.rates.append((state.step, self.timing.lap_tokens_per_s))
            if time.monotonic() - self.written > SECONDS_BETWEEN:
                self.write(run, live=True)

    def write(self, run: TrainingRun, live: bool) -> None:
        """Beside, then renamed: a browser that reloads never sees half a page."""
        data = {
            "step": run.state.step,
            "max_steps": run.params.max_steps,
            "tokens": run.state.tokens,
            "live": live,
            "curves": thinned(np.array(self.points).reshape(-1, len(COLUMNS))),
            "validation": self.validations,
            "speed": list(zip(*thinned(np.array(self.rates).reshape(-1, 2)), strict=True)),
        }
        beside = self.path.with_suffix(".partial")
        reload = f'<meta http-equiv="refresh" content="{SECONDS_BETWEEN:.0f}">' if live else ""
        beside.write_text(PAGE.replace("RELOAD", reload).replace("DATA", json.dumps(data)), encoding="utf-8")
        beside.replace(self.path)
        self.written = time.monotonic()

    def close(self, run: TrainingRun) -> None:
        if hasattr(self, "path"):
            self.write(run, live=False)
            self.tracked.artifact(self.path, "monitor")


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> list[list[float | None]]:
    """The columns of [rows, columns], each of at most so many means of what is finite in a stretch of rows."""
    if not len(values):
        return [[] for _ in range(values.shape[1])]
    starts = np.arange(0, len(values), -(-len(values) // most))
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    counts = np.add.reduceat(finite, starts, dtype=np.int64)
    means = sums / np.maximum(counts, 1)
    return [
        [float(f"{mean:.6g}") if count else None for mean, count in zip(column, present, strict=True)]
        for column, present in zip(means.T, counts.T, strict=True)
    ]
