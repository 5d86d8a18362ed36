"""Who becomes champion: better on the same text by more than chance explains."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stages.export.promotion import Measured, paired_interval, student_interval, verdict

NAN = float("nan")


def documents(path: Path, bits_per_byte: np.ndarray, first: int = 0) -> Path:
    """What evaluate leaves: documents of 100, 200 .. bytes with these bits per byte."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("document", "bytes", "bits_per_byte"))
        for number, value in enumerate(bits_per_byte):
            writer.writerow((first + number, 100 * (number % 5 + 1), value))
    return path


HARD = np.random.default_rng(0).normal(1.7, 0.4, 30)  # documents differ far more than two models do


def measured(path: Path | None, value: float, text: str = "e1", version: str = "2") -> Measured:
    return Measured(version, value, value - 0.07, value + 0.07, text, path)


def test_a_small_gain_on_almost_every_document_wins_though_the_intervals_overlap(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 30)
    theirs = measured(documents(tmp_path / "a.csv", HARD), 1.7333, version="1")
    ours = measured(documents(tmp_path / "b.csv", HARD - 0.02 + noise), 1.7133)
    wins, reason = verdict(ours, theirs)
    assert wins
    assert reason.startswith("1.7133 bits per byte beside the 1.7333 of version 1 on the same text; the paired 95%")
    assert reason.endswith("is below 0") and "over 30 documents" in reason


def test_a_gain_that_chance_explains_does_not_win(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, 30)
    theirs = measured(documents(tmp_path / "a.csv", HARD), 1.7333, version="1")
    ours = measured(documents(tmp_path / "b.csv", HARD - 0.02 + noise), 1.7133)
    wins, reason = verdict(ours, theirs)
    assert not wins and reason.endswith("is not below 0")


def test_the_paired_interval_is_that_of_the_weighted_difference(tmp_path: Path) -> None:
    one, other = documents(tmp_path / "a.csv", HARD), documents(tmp_path / "b.csv", HARD + 0.05)
    assert paired_interval(one, other) == pytest.approx((-0.05, -0.05, 30))
    assert paired_interval(one, one) == (0, 0, 30)
    few, weights = np.array([-0.02, -0.03, -0.01]), np.array([0.25, 0.5, 0.25])
    assert student_interval(few, weights) == pytest.approx((-0.0594, 0.0144), abs=1e-4)
    assert not verdict(measured(one, 1.7), measured(one, 1.7))[0]


@pytest.mark.parametrize("n", [2, 3, 8, 29])
@pytest.mark.parametrize("equal", [True, False])
def test_chance_alone_wins_as_often_as_it_is_said_to(n: int, equal: bool) -> None:
    generator, wins, draws = np.random.default_rng(n), 0, 2000
    for _ in range(draws):
        n_bytes = np.ones(n) if equal else generator.lognormal(0, 1, n)
        wins += student_interval(generator.normal(size=n), n_bytes / n_bytes.sum())[1] < 0
    assert wins / draws < 0.037  # 2.5% and three deviations of 2,000 draws


def test_one_document_shows_nothing(tmp_path: Path) -> None:
    theirs = measured(documents(tmp_path / "a.csv", HARD[:1]), 1.7, version="1")
    ours = measured(documents(tmp_path / "b.csv", HARD[:1] - 0.5), 1.2)
    wins, reason = verdict(ours, theirs)
    assert not wins and "1 test document cannot show what chance does; to choose this one" in reason
    alone = [Measured(str(number), value, value, value, "e1") for number, value in enumerate((1.2, 1.7))]
    assert not verdict(*alone)[0]  # the interval of evaluate has no width there


@pytest.mark.parametrize("champion", [None, measured(None, 1.7, version="1")])
@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_model_without_finite_figures_is_not_even_the_first(value: float, champion: Measured | None) -> None:
    assert verdict(measured(None, value), champion) == (
        False,
        "it has no finite bits per byte; `dvc repro evaluate` measures it",
    )


def test_text_without_a_hash_is_not_the_same_text() -> None:
    nameless = "it has no hash of its test text (eval_sha256); `dvc repro evaluate` measures it"
    assert verdict(measured(None, 1.0, ""), measured(None, 1.7, "", version="1")) == (False, nameless)
    assert verdict(measured(None, 1.0, ""), None) == (False, nameless)


def test_a_champion_without_figures_is_replaced_by_a_person_only() -> None:
    wins, reason = verdict(measured(None, 1.0), measured(None, NAN, version="1"))
    assert not wins
    assert reason.startswith("version 1 has no finite bits per byte to compare with; to choose this one all the same")


@pytest.mark.parametrize("ours, wins", [(1.55, True), (1.65, False)])
def test_without_losses_by_document_the_two_intervals_decide(ours: float, wins: bool) -> None:
    found, reason = verdict(measured(None, ours), measured(None, 1.7, version="1"))
    assert found == wins
    assert "without the losses of both by document" in reason and "below its 1.6300 to 1.7700" in reason


def test_a_loss_in_another_precision_is_not_compared() -> None:
    champion = dataclasses.replace(measured(None, 1.7, version="1"), precision="bf16")
    wins, reason = verdict(measured(None, 1.2), champion)
    assert not wins and "version 1 was measured in bf16, not in fp32" in reason


def test_other_documents_are_not_paired(tmp_path: Path) -> None:
    one, other = documents(tmp_path / "a.csv", HARD), documents(tmp_path / "b.csv", HARD, first=1)
    assert paired_interval(one, other) is None and paired_interval(one, None) is None


def test_a_champion_with_a_figure_alone_is_beaten_by_an_interval_below_it() -> None:
    old = Measured("1", 1.7, NAN, NAN, "e1")
    assert verdict(measured(None, 1.62), old)[0]
    wins, reason = verdict(measured(None, 1.65), old)
    assert not wins and reason.endswith("is not below its figure, which has no interval")


def test_the_first_wins_and_other_text_is_refused_with_the_command_that_chooses_it_all_the_same() -> None:
    assert verdict(measured(None, 1.7), None) == (True, "the first, with 1.7000 bits per byte")
    wins, reason = verdict(measured(None, 1.0, "e2"), measured(None, 1.7, version="1"))
    assert not wins
    assert reason == (
        "version 1 was measured on other text (e1, here e2); to choose this one all the same: "
        "`millrace promote 2 --force-reason WHY`"
    )
    assert not verdict(measured(None, 1.0, ""), measured(None, 1.7))[0]
