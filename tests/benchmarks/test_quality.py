"""quality: the plan tunes both sides alike, and the ratio is what its docstring says. `toy` runs all of it."""

import dataclasses
import time

import pytest

from benchmarks.quality.plan import BASELINE, CANDIDATES, FULL, TOY, Point, candidate_of, finals, further, points_of
from benchmarks.quality.report import crossing
from benchmarks.quality.runs import Trainer
from tests.stages.conftest import CONTEXT, markov_documents, write_split

PHASES_OF_TUNING = ("grid", "vary", "combine")


def trained(points, loss_of):
    """Records of points as if they had been trained."""
    return [
        {
            "family": point.family, "changes": point.changes, "seed": point.seed, "budget": point.budget,
            "validation_loss": loss_of(point),
        }
        for point in points
    ]  # fmt: skip


def pretended_loss(point):
    """Muon is best at 0.016 and with less momentum, AdamW at the edge of its grid, Lion diverges."""
    if point.family == "lion":
        return None
    changes = point.changes
    if point.family == "adamw":
        return 4 - 10 * changes["lr"] - 0.1 * (changes.get("beta2") == 0.99)
    return 3.5 + abs(changes["muon_lr"] - 0.016) + changes["muon_momentum"] * 0.1 + 0.01 * (changes["lr"] > 0.004)


@pytest.fixture
def records():
    found = []
    for phase in PHASES_OF_TUNING:
        found += trained(points_of(phase, found), pretended_loss)
    return found


def test_the_baseline_and_the_candidate_are_tuned_over_equally_many_points(records):
    count = {
        family: len({str(r["changes"]) for r in records if r["family"] == family}) for family in (BASELINE, *CANDIDATES)
    }
    assert count == {"adamw": 28, "muon": 28, "lion": 12}
    assert {r["changes"]["schedule"] for r in records if r["family"] == BASELINE} == {"cosine"}


def test_tuning_goes_on_beyond_the_edge_of_the_grid_and_puts_together_what_helped(records):
    changes = [r["changes"] for r in records if r["family"] == BASELINE]
    assert max(c["lr"] for c in changes) > 0.02
    assert any(c["lr"] > 0.01 and c.get("beta2") == 0.99 for c in changes)


def test_finals_are_the_best_points_with_three_seeds(records):
    assert candidate_of(records) == "muon"
    of_muon = [point for point in finals(records) if point.family == "muon"]
    assert {(point.seed, point.budget) for point in of_muon} == {
        (s, b) for s in range(3) for b in (0.4, 0.5, 0.6, 0.75, 1.0)
    }
    assert {point.changes["muon_momentum"] for point in of_muon} == {0.9}
    assert [point.seed for point in finals(records) if point.family == BASELINE] == [0, 1, 2]


def test_a_further_point_is_the_best_of_its_grid_with_changes(records):
    best = {"schedule": "cosine", "warmup": 0.05, "lr": 0.01, "weight_decay": 0.1}
    assert further(records, "adamw:weight_decay=1,warmup=0.1") == Point(
        "adamw", {**best, "weight_decay": 1.0, "warmup": 0.1}
    )
    assert further(records, "adamw:seed=2") == finals(trained(points_of("grid", []), pretended_loss))[2]
    assert further(records, "adamw:weight_decay=0.4").name in {point.name for point in points_of("grid", [])}


@pytest.mark.parametrize("text", ["adam:lr=1", "adamw:rate=1", "adamw", "adamw:lr=high"])
def test_a_further_point_that_is_none_is_refused(records, text):
    with pytest.raises(ValueError):
        further(records, text)


def test_every_point_is_of_the_same_tokens_and_its_schedule_ends_with_its_budget(records):
    for point in [*points_of("grid", []), *points_of("vary", records), *finals(records)]:
        params = point.params(FULL)
        assert params.max_steps * params.batch_tokens == pytest.approx(FULL.tokens * point.budget, rel=5e-3)


def test_the_part_of_the_tokens_is_read_off_between_budgets():
    assert crossing({0.5: 3.2, 1.0: 3.0}, 3.1) == pytest.approx(0.5**0.5)
    assert crossing({0.5: 3.2, 0.75: 3.05, 1.0: 3.0}, 3.0) == pytest.approx(1)
    assert crossing({0.5: 3.2, 1.0: 3.0}, 3.3) is None


def test_a_run_leaves_nothing_behind_for_the_next_one_of_its_process(tmp_path):
    for seed, split in enumerate(("train", "validation", "test")):
        write_split(tmp_path, split, markov_documents(300, seed))
    size = dataclasses.replace(
        TOY, context_length=CONTEXT, batch_tokens=8 * CONTEXT, tokens=160 * CONTEXT, measured=512
    )
    trainer = Trainer(tmp_path / "data/pack", size, "cpu")
    muon = Point("muon", {"warmup": 0.1, "muon_lr": 0.02, "lr": 0.01})
    keys = ("steps", "first_loss", "train_loss", "validation_loss", "test_loss")
    first, _, again = (trainer.train(point, time.time() + 60) for point in (muon, Point("adamw", {"warmup": 0}), muon))
    assert {key: first[key] for key in keys} == {key: again[key] for key in keys}
    assert first["validation_loss"] < first["first_loss"] - 0.2, "it learns"
    assert trainer.train(muon, time.time()) is None, "the deadline has come"
