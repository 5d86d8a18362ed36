"""What came out of an ablation: the runs of each variant, and their comparison with the baseline by metric.

Runs are compared only where they were measured on the same test text (`eval_sha256`), and losses per token only
where they share a tokenizer, since another one counts other tokens; bits per byte are free of that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.ablation.grid import Planned, Variant
from pipeline.ablation.statistics import (
    ALPHA,
    Comparison,
    Summary,
    compare,
    detectable,
    holm,
    pooled_deviation,
    smallest_p,
    summary,
)
from pipeline.revisions import Revision, experiments_on

QUALITY = ("evaluate.bits_per_byte", "train.best_validation_loss", "evaluate.test_loss", "evaluate.perplexity",
           "train.validation_loss", "train.train_loss")  # fmt: skip
SPEED = ("train.tokens_per_s", "train.peak_bytes")
HIGHER_IS_BETTER = frozenset({"train.tokens_per_s"})
PER_TOKEN = frozenset(QUALITY) - {"evaluate.bits_per_byte"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One experiment that is done."""

    planned: Planned
    revision: Revision
    metrics: dict[str, Any]
    tokenizer: str

    @property
    def measured_on(self) -> str:
        """The test text by the beginning of its hash, and the precision of its losses where that is not fp32."""
        text = str(self.metrics.get("evaluate.eval_sha256") or self.metrics.get("pack.eval_sha256") or "")[:8]
        precision = self.metrics.get("evaluate.eval_precision", "fp32")
        return text if precision == "fp32" else f"{text} in {precision}"

    def number(self, metric: str) -> float | None:
        value = self.metrics.get(metric)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant in one metric.

    Attributes:
        values: by seed.
        comparison: with the baseline; None for the baseline itself, or where `refused` says why not.
        p: of the test that decides, corrected for the number of comparisons.
        test: which test decides.
    """

    variant: Variant
    values: dict[int, float]
    summary: Summary
    comparison: Comparison | None = None
    refused: str = ""
    p: float | None = None
    test: str = ""

    @property
    def different(self) -> bool:
        return self.p is not None and self.p < ALPHA


@dataclasses.dataclass(frozen=True)
class Metric:
    """All variants in one metric, the baseline first.

    Attributes:
        detectable: the smallest difference that so many seeds would find with a power of 0.8.
    """

    name: str
    rows: list[Row]
    deviation: float | None
    detectable: float | None

    def better(self, difference: float) -> bool:
        return (difference > 0) == (self.name in HIGHER_IS_BETTER)


def collect(root: Path, planned: Sequence[Planned], commit: str) -> list[Run]:
    """The experiments that are done, in the order of the plan."""
    done = experiments_on(root, commit)
    runs = []
    for one in planned:
        if one.name in done:
            revision = Revision.of(root, done[one.name])
            outs = revision.locked.files("tokenizer", "outs")
            tokenizer = str(outs.get("data/tokenizer/tokenizer.json", {}).get("md5", ""))
            runs.append(Run(one, revision, revision.metrics(), tokenizer))
    return runs


def metrics_of(runs: Sequence[Run], every: Sequence[Variant]) -> list[Metric]:
    """Every number that differs between some runs, bits per byte first.

    Args:
        every: the variants of the plan, the baseline first, the control last.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics if run.number(name) is not None))
    varied = [name for name in names if len({run.number(name) for run in runs}) > 1 or name in (*QUALITY, *SPEED)]
    order = [*QUALITY, *SPEED]
    varied.sort(key=lambda name: (order.index(name) if name in order else len(order), names.index(name)))
    return [metric for name in varied if (metric := _metric(name, runs, every))]


def _metric(name: str, runs: Sequence[Run], every: Sequence[Variant]) -> Metric | None:
    by_variant = [[run for run in runs if run.planned.variant == variant] for variant in every]
    rows = []
    base = by_variant[0]
    for variant, its in zip(every, by_variant, strict=True):
        values = {run.planned.seed: number for run in its if (number := run.number(name)) is not None}
        values = {seed: value for seed, value in values.items() if math.isfinite(value)}
        if values:
            rows.append(_row(name, variant, values, its, base))
    if not rows or rows[0].variant != every[0]:
        return None
    compared = [place for place, row in enumerate(rows) if row.comparison and not row.variant.control]
    decided = dict(zip(compared, _decided([rows[place] for place in compared]), strict=True))
    rows = [decided.get(place, row) for place, row in enumerate(rows)]
    rows = [_decided([row])[0] if row.variant.control and row.comparison else row for row in rows]
    deviation = pooled_deviation([list(row.values.values()) for row in rows])
    n = min((row.comparison.n for row in rows if row.comparison), default=len(rows[0].values))
    return Metric(name, rows, deviation, detectable(deviation, n) if deviation else None)


def _row(name: str, variant: Variant, values: dict[int, float], its: Sequence[Run], base: Sequence[Run]) -> Row:
    row = Row(variant, values, summary(list(values.values())))
    if not base or variant == base[0].planned.variant:
        return row
    if reason := incomparable(name, its, base):
        return dataclasses.replace(row, refused=reason)
    others = {run.planned.seed: number for run in base if (number := run.number(name)) is not None}
    if variant.control:  # other seeds: paired in their order
        pairs = list(zip(values.values(), others.values(), strict=False))
    else:
        pairs = [(values[seed], others[seed]) for seed in values if seed in others]
    if not pairs:
        return dataclasses.replace(row, refused="no seed in common with the baseline")
    one, other = zip(*pairs, strict=True)
    return dataclasses.replace(row, comparison=compare(one, other))


def incomparable(name: str, its: Sequence[Run], base: Sequence[Run]) -> str:
    """Why runs cannot be compared in a metric, or nothing."""
    if not name.startswith(("evaluate.", "train.")) or name in SPEED:
        return ""
    texts = [sorted({run.measured_on for run in runs}) for runs in (its, base)]
    if texts[0] != texts[1] or len(texts[0]) > 1:
        mine, other = (", ".join(text or "none" for text in some) for some in texts)
        return f"measured on other test text (eval_sha256 {mine}, not {other})"
    tokenizers = {run.tokenizer for run in (*its, *base)}
    if name in PER_TOKEN and len(tokenizers) > 1:
        return "per token of another tokenizer; compare bits per byte"
    return ""


def _decided(rows: Sequence[Row]) -> list[Row]:
    """The rows with corrected p-values, of the exact test where so many seeds could show a difference, else of t."""
    if not rows:
        return []
    fewest = min(row.comparison.n for row in rows if row.comparison)
    exact = smallest_p(fewest) <= ALPHA / len(rows)
    chosen = [row.comparison.p_resampled if exact else row.comparison.p_t for row in rows if row.comparison]
    if any(p is None for p in chosen):
        return [dataclasses.replace(row, test="one seed: no test") for row in rows]
    corrected = holm([p for p in chosen if p is not None])
    test = rows[0].comparison.method if exact and rows[0].comparison else "paired t"
    return [dataclasses.replace(row, p=p, test=test) for row, p in zip(rows, corrected, strict=True)]
