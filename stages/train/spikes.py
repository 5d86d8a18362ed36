"""Names the documents of steps whose loss jumps or is not finite, in training.log and monitor/spikes.jsonl.

A jump is measured against the 32 steps before: how far the loss is above their median, in standard
deviations of the noise. The noise is taken from differences of neighbours (1.4826 times their median
over root 2), so that neither an earlier spike nor a falling curve counts as noise. Example:

    losses .. 3.1 3.2 3.1 3.2 | 3.9    median 3.15, noise 0.10, so 3.9 is 7.2 deviations above: a spike

Which rows a step read is a pure function of seed and step, and a row says its documents, so nothing is
kept for this but the losses, in the state: a resumed run finds the same spikes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from stages.document_names import document_names
from stages.tokens import data_order
from stages.train.journal import Journal, keep_lines
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult

FEWEST_LOSSES = 16  # before, a jump is not told from the fall of the first steps
SMALLEST_NOISE = 1e-3  # nats: below, rounding is all there is
NAMED_IN_LOG = 5


class Spikes(Hook):
    """Writes one line of JSON a spike or skipped step: step, loss, rows, documents."""

    every_rank = False

    def __init__(self, journal: Journal):
        self.journal = journal

    def start(self, run: TrainingRun) -> None:
        self.path = run.folder / "monitor" / "spikes.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        keep_lines(self.path, run.state.step, lambda line: str(json.loads(line)["step"]))

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        if not run.execution.spike_threshold:
            return
        deviations = height(run.state.recent_losses)
        if not result.skipped and deviations <= run.execution.spike_threshold:
            return
        step = run.state.step
        record = {"step": step, **described(result, deviations), **origins(run, step)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        what = "NOT FINITE" if result.skipped else f"SPIKE of {deviations:.1f} deviations, loss {result.loss:.4f}"
        names = ", ".join(map(str, record["documents"][:NAMED_IN_LOG]))
        self.journal.write(
            f"step {step} {what}: {len(record['documents'])} documents, {names} ..; all in {self.path.name}"
        )


def height(losses: Sequence[float]) -> float:
    """How many deviations of the noise the last loss is above the median of those before; 0 if they are few."""
    *before, last = losses or [0.0]
    if len(before) < FEWEST_LOSSES:
        return 0.0
    steps = [abs(a - b) for a, b in pairwise(before)]
    noise = max(1.4826 * median(steps) / 2**0.5, SMALLEST_NOISE)
    return (last - median(before)) / noise


def described(result: StepResult, deviations: float) -> dict[str, Any]:
    """JSON has no NaN: a skipped step says in words what its loss was."""
    if result.skipped:
        return {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}
    return {"loss": result.loss, "grad_norm": result.grad_norm, "deviations": round(deviations, 2)}


def origins(run: TrainingRun, step: int) -> dict[str, list]:
    """The rows that optimizer step `step` (from 1) read, and the documents in them: ids, or numbers without ids."""
    rows, count = run.train_rows, run.rows_per_step
    row_ids = data_order(rows.n_rows, run.params.seed, (step - 1) * count, count).tolist()
    numbers = list(dict.fromkeys(number for row in row_ids for number in rows.origins(row)[0]))
    try:
        names: dict[int, str] = document_names(run.job.root, "train", numbers)
    except OSError:  # a workspace with the rows alone
        names = {}
    return {"rows": row_ids, "documents": [names.get(number, number) for number in numbers]}
