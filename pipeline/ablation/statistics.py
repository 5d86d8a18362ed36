"""What can be said of a handful of runs: intervals, paired differences, corrected p-values, and what would be seen.

Two variants are compared seed by seed, since runs with equal seeds see equal rows in equal order. With differences
0.010, 0.014, 0.012 the mean is 0.012, and two tests ask how probable such a mean is if nothing differs:

    sign flip     exact: all 2^3 signs of the differences are as probable; 2 of 8 means are as far from 0: p = 0.25
    paired t      mean / (deviation / sqrt(3)) = 10.4: p = 0.009, if differences are about normal

Three seeds can never do better than p = 0.25 in the first, so there the second decides, and stands beside the first
in the report. With many comparisons one of them is small by chance; Holm's correction accounts for that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

ALPHA, POWER = 0.05, 0.8
EXACT_UP_TO = 14  # seeds whose sign flips are all counted
RESAMPLES = 20_000
BOOTSTRAP_SEED = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and 95% interval (Student's t) of one variant; the latter need two values."""

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A variant minus the baseline, seed by seed.

    Attributes:
        p_resampled: exact by sign flips, or by bootstrap with more than 14 seeds.
        method: which of these.
        p_t: of a paired t test.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p_resampled: float
    method: Literal["sign flip", "bootstrap"]
    p_t: float | None


def summary(values: Sequence[float]) -> Summary:
    mean, deviation, half = _spread(values)
    if deviation is None or half is None:
        return Summary(len(values), mean, None, None, None)
    return Summary(len(values), mean, deviation, mean - half, mean + half)


def compare(variant: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """The differences of equal seeds, in the same order in both."""
    differences = [one - other for one, other in zip(variant, baseline, strict=True)]
    mean, _, half = _spread(differences)
    p, method = resampled_p(differences)
    low, high = (mean - half, mean + half) if half is not None else (None, None)
    return Comparison(len(differences), mean, low, high, p, method, paired_t(differences))


def resampled_p(differences: Sequence[float]) -> tuple[float, Literal["sign flip", "bootstrap"]]:
    """Two-sided: how often a mean is as far from 0 as the one seen, if 0 were true."""
    seen = np.asarray(differences, dtype=np.float64)
    if len(seen) <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(seen))))
        means = np.abs(signs @ seen)
        return float(np.mean(means >= abs(seen.sum()) * (1 - 1e-12))), "sign flip"
    centred = seen - seen.mean()
    drawn = np.random.default_rng(BOOTSTRAP_SEED).choice(centred, (RESAMPLES, len(seen))).mean(axis=1)
    return float((1 + np.sum(np.abs(drawn) >= abs(seen.mean()))) / (RESAMPLES + 1)), "bootstrap"


def paired_t(differences: Sequence[float]) -> float | None:
    """The p-value of a paired t test, two-sided; None with one seed."""
    from scipy import stats

    mean, deviation, _ = _spread(differences)
    if deviation is None:
        return None
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    n = len(differences)
    return float(2 * stats.t.sf(abs(mean) / (deviation / math.sqrt(n)), n - 1))


def smallest_p(n: int) -> float:
    """What an exact sign-flip test of n differences can reach."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the smallest p times m, the next times m - 1 and so on, never falling, at most 1."""
    corrected, worst = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = worst
    return corrected


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, over all of them."""
    squares = sum(float(np.var(group, ddof=1)) * (len(group) - 1) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(squares / freedom) if freedom else None


def detectable(deviation: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest true difference that a paired t test of n seeds finds with this power.

    The deviation is that of single runs; differences of two runs deviate by sqrt(2) times as much, which is
    cautious: where equal seeds make two variants alike, smaller differences are found.
    """
    from scipy import optimize, stats

    if n < 2 or deviation == 0:
        return None
    bound = stats.t.ppf(1 - alpha / 2, n - 1)

    def missing(shift: float) -> float:
        return float(stats.nct.sf(bound, n - 1, shift)) - power  # the other side is next to nothing

    top = 1.0
    while missing(top) < 0:
        top *= 2
    return float(optimize.brentq(missing, 0, top)) * deviation * math.sqrt(2 / n)


def _spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, standard deviation, and half of the 95% interval."""
    from scipy import stats

    n = len(values)
    if not n:
        raise ValueError("no values")
    mean = float(np.mean(values))
    if n < 2:
        return mean, None, None
    deviation = float(np.std(values, ddof=1))
    return mean, deviation, float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * deviation / math.sqrt(n)
