"""pipeline.ablation.statistics, held against scipy.stats."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.ablation.statistics import (
    compare,
    detectable,
    holm,
    paired_t,
    pooled_deviation,
    resampled_p,
    smallest_p,
    summary,
)


@pytest.fixture(params=[3, 5, 8])
def runs(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(request.param)
    return draw.normal(1.73, 0.01, request.param), draw.normal(1.74, 0.01, request.param)


def test_mean_deviation_and_interval(runs: tuple[np.ndarray, np.ndarray]) -> None:
    values, _ = runs
    found = summary(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.n, found.mean, found.deviation) == (len(values), values.mean(), pytest.approx(values.std(ddof=1)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert summary([1.5]).deviation is None and summary([1.5]).low is None


def test_paired_differences(runs: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = runs
    found, expected = compare(one, other), stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert found.p_t == pytest.approx(expected.pvalue)
    assert (found.difference, found.low, found.high) == pytest.approx(
        ((one - other).mean(), interval.low, interval.high)
    )
    exact = stats.permutation_test(
        (one - other,), lambda d, axis: d.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert (found.p_resampled, found.method) == (pytest.approx(exact.pvalue), "sign flip")


def test_three_seeds_cannot_go_below_a_quarter_by_sign_flips() -> None:
    assert resampled_p([0.010, 0.014, 0.012]) == (0.25, "sign flip")
    assert smallest_p(3) == 0.25 and smallest_p(6) == 2 / 64
    assert paired_t([0.010, 0.014, 0.012]) == pytest.approx(0.0092, abs=1e-4)


def test_many_seeds_are_resampled() -> None:
    differences = np.random.default_rng(1).normal(0.004, 0.01, 30)
    p, method = resampled_p(differences)
    assert method == "bootstrap" and p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert resampled_p(differences) == (p, method)


def test_equal_runs_are_equal() -> None:
    assert compare([1.0, 2.0], [1.0, 2.0]).p_t == 1.0 == resampled_p([0.0, 0.0])[0]
    assert paired_t([0.5, 0.5]) == 0.0 and paired_t([0.5]) is None


def test_holm() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []
    draw = np.random.default_rng(0).uniform(size=9)
    by_hand = [max(min(1.0, (9 - rank) * p) for rank, p in enumerate(np.sort(draw)) if p <= mine) for mine in draw]
    assert holm(list(draw)) == pytest.approx(by_hand)


def test_pooled_deviation() -> None:
    groups = [[1.0, 2.0, 3.0], [5.0, 5.0], [7.0]]
    assert pooled_deviation(groups) == pytest.approx(np.sqrt(2 / 3)) and pooled_deviation([[1.0]]) is None


def test_a_difference_of_the_smallest_size_is_found_four_times_of_five() -> None:
    size = detectable(0.01, 3)
    assert size is not None
    draw = np.random.default_rng(0)
    one, other = (draw.normal(shift, 0.01, (20_000, 3)) for shift in (size, 0.0))
    assert np.mean(stats.ttest_rel(one, other, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert detectable(0.01, 1) is None and detectable(0.0, 3) is None
    for n in (2, 4, 30):
        assert power_of(n, detectable(1.0, n)) == pytest.approx(0.8, abs=1e-6)
    assert detectable(0.02, 3) == pytest.approx(2 * size) and detectable(0.01, 6) < size


def power_of(n: int, size: float | None) -> float:
    assert size is not None
    return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, size / np.sqrt(2 / n)))
