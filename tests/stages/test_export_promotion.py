"""Who becomes champion: better on the same text by more than chance explains."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from stages.export.promotion import Measured, paired_interval, verdict

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
    assert not verdict(measured(one, 1.7), measured(one, 1.7))[0]


@pytest.mark.parametrize("ours, wins", [(1.55, True), (1.65, False), (NAN, False)])
def test_without_losses_by_document_the_two_intervals_decide(ours: float, wins: bool) -> None:
    found, reason = verdict(measured(None, ours), measured(None, 1.7, version="1"))
    assert found == wins
    assert "without the losses of both by document" in reason and "below its 1.6300 to 1.7700" in reason


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
