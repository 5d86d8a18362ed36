"""What is trained: points of three families, in phases that follow from what was found before.

    grid      12 points of each family: learning rate x the second knob
    vary      12 from the best point of AdamW and 12 from the best candidate, each with one knob changed
    combine   4 of each: what helped, together, at several rates; and the two changes that helped most
    final     both at their best with 3 seeds, the candidate at budgets of 0.4 to 1 of the tokens

So AdamW + cosine has 28 points, and so has the candidate. All but the finals are of the whole budget and seed 0.
Where the best rate of the grid is at its edge, two of the variations go on beyond it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from model.config import ModelConfig
from stages.train.params import TrainParams

Changes = dict[str, Any]  # of TrainParams; `warmup` is a share of the steps, `batch` a multiple of the usual batch
Record = dict[str, Any]

BASELINE = "adamw"
CANDIDATES = ("muon", "lion")
SEEDS = (0, 1, 2)
BUDGETS = (0.6, 0.75, 0.5, 1.0, 0.4)  # the most telling first
HELPS = 0.001  # nats: a change that helps by less is noise


@dataclasses.dataclass(frozen=True)
class Size:
    """What the full benchmark and the toy differ in."""

    model: ModelConfig
    vocab_size: int
    context_length: int
    micro_batch: int  # rows of a forward pass
    batch_tokens: int
    tokens: int  # of a whole budget
    reserved: float
    max_documents: int  # of packages; 0 = all
    precision: str
    measured: int  # tokens of validation and of test by which a run is judged, about


FULL = Size(
    ModelConfig(preset="", n_layers=8, hidden_size=512, n_heads=8, n_kv_heads=8), vocab_size=8192, context_length=512,
    micro_batch=16, batch_tokens=16384, tokens=12_000_000, reserved=0.02, max_documents=0, precision="bf16",
    measured=400_000,
)  # fmt: skip
TOY = Size(
    ModelConfig(preset="", n_layers=2, hidden_size=32, n_heads=2, n_kv_heads=2), vocab_size=384, context_length=64,
    micro_batch=4, batch_tokens=512, tokens=8_000, reserved=0.1, max_documents=60, precision="fp32",
    measured=4096,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One training."""

    family: str
    changes: Changes
    seed: int = 0
    budget: float = 1.0

    @property
    def name(self) -> str:
        knobs = " ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in sorted(self.changes.items()))  # fmt: skip
        return f"{self.family} {knobs}" + (f" | seed {self.seed} budget {self.budget}" if self.is_final else "")

    @property
    def is_final(self) -> bool:
        return (self.seed, self.budget) != (0, 1.0)

    def params(self, size: Size) -> TrainParams:
        changes = dict(self.changes)
        batch_tokens = int(size.batch_tokens * changes.pop("batch", 1))
        steps = int(size.tokens * self.budget) // batch_tokens
        warmup_steps = round(steps * changes.pop("warmup"))
        return TrainParams(
            optimizer=self.family, seed=self.seed, max_steps=steps, batch_tokens=batch_tokens,
            warmup_steps=warmup_steps, precision=size.precision, **changes,
        )  # fmt: skip


def point_of(record: Record) -> Point:
    return Point(record["family"], record["changes"], record["seed"], record["budget"])


# The grid: what all points of a family share, the learning rate, and the second knob.
COMMON: dict[str, Changes] = {
    "adamw": {"schedule": "cosine", "warmup": 0.05},
    "muon": {"schedule": "linear", "warmup": 0.05, "weight_decay": 0.1, "muon_momentum": 0.95},
    "lion": {"schedule": "linear", "warmup": 0.05},
}
RATE = {"adamw": "lr", "muon": "muon_lr", "lion": "lion_lr"}
RATES = {
    "adamw": (1e-3, 1.6e-3, 2.5e-3, 4e-3, 6.3e-3, 1e-2),
    "muon": (0.005, 0.01, 0.016, 0.025, 0.04, 0.063),
    "lion": (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3),
}
SECOND = {
    "adamw": ("weight_decay", (0.1, 0.4)),
    "muon": ("lr", (0.004, 0.012)),
    "lion": ("lion_weight_decay", (0.3, 1.0)),
}


def grid(family: str) -> list[Point]:
    key, values = SECOND[family]
    pairs = itertools.product(RATES[family], values)
    return [Point(family, {**COMMON[family], RATE[family]: rate, key: value}) for rate, value in pairs]


def scaled(key: str, factor: float) -> Changes:
    """A knob at so many times its value at the best point."""
    return {key: ("times", factor)}


VARIATIONS: dict[str, list[Changes]] = {
    "adamw": [
        {"batch": 0.5}, {"beta2": 0.98}, scaled("weight_decay", 2.5), {"warmup": 0.1}, {"min_lr_ratio": 0.1},
        {"beta2": 0.99}, {"batch": 2}, scaled("weight_decay", 0.3), {"warmup": 0.02}, {"beta1": 0.95},
    ],
    "muon": [
        {"batch": 0.5}, {"schedule": "wsd", "decay_ratio": 0.5}, scaled("weight_decay", 2.5), {"muon_momentum": 0.9},
        {"schedule": "cosine"}, scaled("lr", 0.4), {"batch": 2}, scaled("weight_decay", 0.3), scaled("lr", 2.5),
        {"beta2": 0.99},
    ],
    "lion": [
        {"batch": 0.5}, {"schedule": "wsd", "decay_ratio": 0.5}, scaled("lion_weight_decay", 2.5),
        {"lion_beta1": 0.95}, {"schedule": "cosine"}, {"lion_beta2": 0.98}, {"batch": 2},
        scaled("lion_weight_decay", 0.3), {"warmup": 0.02}, {"lion_beta2": 0.95},
    ],
}  # fmt: skip


def tuned(records: Sequence[Record], family: str) -> list[Record]:
    """The points by which a family is tuned, the best first; what diverged is the worst."""
    mine = [record for record in records if record["family"] == family and not point_of(record).is_final]
    return sorted(mine, key=lambda record: record["validation_loss"] or float("inf"))


def candidate_of(records: Sequence[Record]) -> str:
    """The family, other than the baseline, that has the best point."""
    found = [tuned(records, family)[0] for family in CANDIDATES if tuned(records, family)]
    return min(found, key=lambda record: record["validation_loss"] or float("inf"))["family"]


def in_turn(*lists: Sequence[Point]) -> list[Point]:
    """One of each list after the other, so that a plan that is cut short has been fair."""
    return [point for points in itertools.zip_longest(*lists) for point in points if point is not None]


def best_of_grid(records: Sequence[Record], family: str) -> Record:
    names = {point.name for point in grid(family)}
    return next(record for record in tuned(records, family) if point_of(record).name in names)


def variations(records: Sequence[Record], family: str) -> list[Point]:
    best = best_of_grid(records, family)["changes"]
    rate, found = RATE[family], []
    beyond = {RATES[family][0]: (0.63, 0.4), RATES[family][-1]: (1.6, 2.5)}
    rates = [scaled(rate, factor) for factor in beyond.get(best[rate], (0.8, 1.25))]
    for changes in rates + VARIATIONS[family]:
        values = {key: best[key] * value[1] if isinstance(value, tuple) else value for key, value in changes.items()}
        found.append(Point(family, {**best, **values}))
    return found


def combinations(records: Sequence[Record], family: str) -> list[Point]:
    """The changes that helped, of each knob the best one, together and at other rates; and the two that helped most."""
    varied = {point.name: point for point in variations(records, family)}
    done = {point.name for point in grid(family)} | set(varied)
    best = best_of_grid(records, family)
    helped: dict[str, Changes] = {}  # by the knob, the best change first
    for record in tuned(records, family):
        point = varied.get(point_of(record).name)
        if point and record["validation_loss"] and record["validation_loss"] < best["validation_loss"] - HELPS:
            changes = {key: value for key, value in point.changes.items() if best["changes"].get(key) != value}
            helped.setdefault(max(changes), changes)
    first_two, together = dict(best["changes"]), dict(best["changes"])
    for number, changes in enumerate(helped.values()):
        together |= changes
        first_two |= changes if number < 2 else {}
    rates = [{**together, RATE[family]: together[RATE[family]] * factor} for factor in (0.75, 1.33, 0.87, 1.15)]
    points = {point.name: point for point in (Point(family, changes) for changes in (together, first_two, *rates))}
    return [point for name, point in points.items() if name not in done][:4]


def finals(records: Sequence[Record]) -> list[Point]:
    """The baseline at its best with all seeds, then the candidate at every budget."""
    candidate = candidate_of(records)
    base, best = (tuned(records, family)[0]["changes"] for family in (BASELINE, candidate))
    points = [Point(BASELINE, base, seed) for seed in SEEDS]
    return points + [Point(candidate, best, seed, budget) for budget in BUDGETS for seed in SEEDS]


def further(records: Sequence[Record], text: str) -> Point:
    """A point beside the plan: FAMILY:KEY=VALUE,.. is the best point of the family's grid with these changes; the key
    `seed` is another draw of it.

    Raises:
        ValueError: there is no such family, no such knob, or the value is no number.
    """
    family, _, knobs = text.partition(":")
    known = {*TrainParams.model_fields, "warmup"}
    changes: Changes = {}
    for knob in knobs.split(","):
        key, _, value = knob.partition("=")
        if family not in RATE or key not in known:
            raise ValueError(f"{text}: not FAMILY:KEY=NUMBER,.. such as adamw:lr=0.01,weight_decay=0.4")
        changes[key] = float(value)
    seed = int(changes.pop("seed", 0))
    return Point(family, {**best_of_grid(records, family)["changes"], **changes}, seed)


PHASES = ("grid", "vary", "combine", "final")


def points_of(phase: str, records: Sequence[Record]) -> list[Point]:
    """The points of a phase, once those before it are done."""
    if phase == "grid":
        return in_turn(*(grid(family) for family in (BASELINE, *CANDIDATES)))
    if phase == "final":
        return finals(records)
    rule = variations if phase == "vary" else combinations
    return in_turn(*(rule(records, family) for family in (BASELINE, candidate_of(records))))
