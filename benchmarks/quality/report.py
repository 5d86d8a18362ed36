"""Tables of what was trained, and the ratio of tokens that the benchmark is about."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.plan import (
    BASELINE,
    BUDGETS,
    CANDIDATES,
    RATE,
    RATES,
    SEEDS,
    Changes,
    Record,
    candidate_of,
    tuned,
)
from benchmarks.quality.runs import read_runs

T_OF_3 = 4.303  # Student's t: 95% of a mean of three
SHOWN = 8


def print_report(path: Path) -> None:
    about, records = read_runs(path)
    print(f"{about['device']}, torch {about['torch']}; {about['tokens_train']:,} training tokens in "
          f"{about['documents']:,} documents, {about['tokens_validation']:,} of validation, {about['tokens_test']:,} "
          f"of test, {about['bytes_per_token']:.2f} bytes a token")  # fmt: skip
    for family in (BASELINE, *CANDIDATES):
        print_points(tuned(records, family), family)
    if tuned(records, BASELINE) and any(tuned(records, family) for family in CANDIDATES):
        for split in ("validation", "test"):
            print_ratio(records, split)


def print_points(points: Sequence[Record], family: str) -> None:
    tokens = sum(point["tokens"] for point in points)
    print(f"\n{family}: {len(points)} points, {tokens / 1e6:.0f}M tokens; validation, test, training loss")
    for point in points[:SHOWN]:
        print(f"  {loss_text(point['validation_loss'])}  {loss_text(point['test_loss'])}  "
              f"{loss_text(point['train_loss'])}  {knobs(point['changes'])}")  # fmt: skip
    if points[SHOWN:]:
        print(f"  .. to {loss_text(points[-1]['validation_loss'])}  {knobs(points[-1]['changes'])}")
    by_rate = {rate: [p for p in points if p["changes"][RATE[family]] == rate] for rate in RATES[family]}
    best = {rate: min(p["validation_loss"] or math.inf for p in found) for rate, found in by_rate.items() if found}
    print(f"  best by {RATE[family]}: " + ", ".join(f"{rate:g} {loss:.4f}" for rate, loss in best.items()))


def print_ratio(records: Sequence[Record], split: str) -> None:
    """Seed by seed: where the candidate's losses cross the one that the baseline ends with."""
    candidate = candidate_of(records)
    base, best = tuned(records, BASELINE)[0]["changes"], tuned(records, candidate)[0]["changes"]
    print(f"\n{split} loss by seed: {BASELINE} at the whole budget, {candidate} at parts of it, and the part at which "
          "it is equal")  # fmt: skip
    print(f"  {'seed':>4} {BASELINE:>8} " + " ".join(f"{budget:>8g}" for budget in sorted(BUDGETS)) + "     part")
    parts = []
    for seed in SEEDS:
        goal = losses(records, BASELINE, base, seed, split).get(1.0)
        found = losses(records, candidate, best, seed, split)
        part = crossing(found, goal) if goal is not None else None
        row = " ".join(f"{loss_text(found.get(budget)):>8}" for budget in sorted(BUDGETS))
        print(f"  {seed:>4} {loss_text(goal):>8} {row} {part_text(found, goal, part)}")
        parts += [] if part is None else [part]
    if len(parts) == len(SEEDS):
        spread = T_OF_3 * statistics.stdev(parts) / math.sqrt(len(parts))
        print(f"  tokens of {candidate} / tokens of {BASELINE}: {statistics.mean(parts):.3f} +- {spread:.3f} "
              f"(95%, {len(parts)} seeds), from {min(parts):.3f} to {max(parts):.3f}")  # fmt: skip


def losses(records: Sequence[Record], family: str, changes: Changes, seed: int, split: str) -> dict[float, float]:
    """By budget."""
    return {
        record["budget"]: record[f"{split}_loss"]
        for record in records
        if (record["family"], record["changes"], record["seed"]) == (family, changes, seed) and record[f"{split}_loss"]
    }


def crossing(losses: dict[float, float], goal: float) -> float | None:
    """The budget at which the loss is `goal`, on straight lines over the logarithm of the budget.

    Example: 3.2 at 0.5 and 3.0 at 1.0 are 3.1 at 0.707. None where the budgets do not enclose it.
    """
    budgets = sorted(losses)
    for low, high in itertools.pairwise(budgets):
        if losses[low] >= goal >= losses[high]:
            share = (losses[low] - goal) / (losses[low] - losses[high]) if losses[low] > losses[high] else 0.0
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def part_text(losses: dict[float, float], goal: float | None, part: float | None) -> str:
    if part is not None:
        return f"{part:8.3f}"
    if goal is None or not losses:
        return f"{'-':>8}"
    return (
        f"{'<' if losses[min(losses)] < goal else '>'}{min(losses) if losses[min(losses)] < goal else max(losses):7g}"
    )


def loss_text(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def knobs(changes: Changes) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in changes.items()
    )
