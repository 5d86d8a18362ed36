"""Names the documents of steps whose loss jumps or is not finite, in training.log and monitor/spikes.jsonl.

A jump is measured against the 32 steps before: how far the loss is above their median, in standard
deviations of the noise. The noise is taken from differences of neighbours (1.4826 times their median
over root 2), so that neither an earlier spike nor a falling curve counts as noise. Example:

    losses .. 3.1 3.2 3.1 3.2 | 3.9    median 3.15, noise 0.10, so 3.9 is 7.2 deviations above: a spike

Which rows a step read is a pure function of seed and step, and a row says its documents, so nothing is
kept for this but the losses, in the state: a resumed run finds the same spikes. The documents stand in the
order of their loss under the weights as they are now, the hardest first; what is not finite comes before all.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from stages.document_names import document_names
from stages.order import data_order
from stages.perplexity import ROWS_PER_FORWARD, token_losses
from stages.train.journal import Journal, keep_lines
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult
from stages.wording import counted

FEWEST_LOSSES = 16  # before, a jump is not told from the fall of the first steps
SMALLEST_NOISE = 1e-3  # nats: below, rounding is all there is
NAMED_IN_LOG = 3


class Spikes(Hook):
    """Writes one line of JSON a spike or skipped step. All ranks find it, as a sharded model needs them all."""

    def __init__(self, journal: Journal):
        self.journal = journal

    def start(self, run: TrainingRun) -> None:
        self.path = run.folder / "monitor" / "spikes.jsonl"
        if run.ranks.first:
            self.path.parent.mkdir(exist_ok=True)
            keep_lines(self.path, run.state.step, lambda line: str(json.loads(line)["step"]))

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        deviations = 0.0 if result.skipped else height(run.state.recent_losses)
        overflow = run.scaler is not None and math.isfinite(result.loss)  # by which fp16 finds its factor
        broken = result.skipped and not overflow
        if not run.execution.spike_threshold or not (broken or deviations > run.execution.spike_threshold):
            return
        step = run.state.step
        rows = rows_of_step(run, step)
        documents = hardest_first(run, rows)
        if run.ranks.first:
            record = {"step": step, **described(result, deviations), "rows": rows, "documents": documents}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        what = "NOT FINITE" if result.skipped else f"SPIKE of {deviations:.1f} deviations, loss {result.loss:.4f}"
        names = ", ".join(f"{document['id']} ({document['loss']})" for document in documents[:NAMED_IN_LOG])
        self.journal.write(
            f"step {step} {what}: {counted(len(documents), 'document')}, the hardest {names}; "
            f"all in monitor/{self.path.name}"
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


def rows_of_step(run: TrainingRun, step: int) -> list[int]:
    """The rows that optimizer step `step` (from 1) read, on all ranks."""
    first = (step - 1) * run.rows_per_step
    return data_order(run.train_rows.n_rows, run.params.seed, first, run.rows_per_step).tolist()


def hardest_first(run: TrainingRun, row_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The documents in these rows: id (their number, where there are no ids), mean loss in nats (null where it is
    not finite) and labels."""
    nats: dict[int, float] = defaultdict(float)
    labels: dict[int, int] = defaultdict(int)
    run.model.eval()
    for first in range(0, len(row_ids), ROWS_PER_FORWARD):
        some = np.array(row_ids[first : first + ROWS_PER_FORWARD])
        batch = run.train_rows.batch(some)
        with run.autocast():
            losses = token_losses(run.model, batch, run.ranks.device)
        for row, loss_T, segments_T in zip(some.tolist(), losses, batch.segments, strict=True):
            for segment, document in enumerate(run.train_rows.origins(row)[0]):
                nats[document] += float(loss_T[segments_T == segment].sum(dtype=np.float64))
                labels[document] += int((segments_T == segment).sum())
    run.model.train()
    try:
        names: dict[int, str] = document_names(run.job.root, "train", nats)
    except OSError:  # a workspace with the rows alone
        names = {}
    means = {document: nats[document] / labels[document] for document in nats}
    ordered = sorted(nats, key=lambda document: (math.isfinite(means[document]), -means[document], document))
    return [
        {
            "id": names.get(document, document),
            "loss": round(means[document], 4) if math.isfinite(means[document]) else None,
            "labels": labels[document],
        }
        for document in ordered
    ]
