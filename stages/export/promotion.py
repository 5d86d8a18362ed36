"""The rule by which a model becomes champion: better on the same text by more than chance explains.

Two models that are measured on the same documents find the same ones hard, so their figures rise and fall
together, and what counts is the difference on each document. Their mean, weighted by bytes, is the difference in bits
per byte; its interval is Student's t around it, with the error of the jackknife (leave one document out) and as many
degrees of freedom as documents of equal weight would have, less one: 1 / sum of squared weights - 1.

Example: documents of 100, 200 and 100 bytes, differences -0.02, -0.03 and -0.01 bits per byte. The mean is -0.0225;
without the first it is -0.0233, without the second -0.0150, without the third -0.0267: error 0.0070. Weights of 1/4,
1/2, 1/4 are worth 2.67 documents, t with 1.67 degrees is 5.24, so the interval is -0.0594 to +0.0144. Not all of it is
below 0: chance may explain the difference.

Where no model is better, 2.5 of 100 such intervals should lie below 0. With differences that are normal or of t with 3
degrees, documents of one length or of lengths that differ tenfold, it is 0.8 to 3.0 from 2 documents to 200; a
bootstrap over documents has 23 with 2 of them, 6 with 8. Very skewed differences mislead both.

Where the losses of a model on single documents are not at hand, its interval has to lie below the other's.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FEWEST_DOCUMENTS = 2  # one has no spread, so nothing says what chance does


@dataclass(frozen=True)
class Measured:
    """A version and its figures on the test text; NaN where it has none.

    Attributes:
        low, high: the 95% interval of bits_per_byte.
        documents: the file documents.csv of evaluate, or None.
        precision: of the passes that measured it (`evaluate.precision`).
    """

    version: str
    bits_per_byte: float
    low: float
    high: float
    eval_sha256: str
    documents: Path | None = None
    precision: str = "fp32"


def verdict(ours: Measured, champion: Measured | None) -> tuple[bool, str]:
    """Whether `ours` takes the champion's place, and why or why not."""
    if lacking := lack_of(ours):
        return False, f"it has no {lacking}; `dvc repro evaluate` measures it"
    if champion is None:
        return True, f"the first, with {ours.bits_per_byte:.4f} bits per byte"
    by_hand = f"to choose this one all the same: `millrace promote {ours.version} --force-reason WHY`"
    if ours.eval_sha256 != champion.eval_sha256:
        theirs, mine = champion.eval_sha256 or "unknown", ours.eval_sha256
        return False, (
            f"version {champion.version} was measured on other text ({theirs[:12]}, here {mine[:12]}); {by_hand}"
        )
    if not comparable(ours, champion):
        return False, (
            f"version {champion.version} was measured in {champion.precision}, not in {ours.precision}, which alone "
            f"moves the fourth digit; set evaluate.precision: {champion.precision} and export again, or {by_hand}"
        )
    if lacking := lack_of(champion):
        return False, f"version {champion.version} has no {lacking} to compare with; {by_hand}"
    figures = (
        f"{ours.bits_per_byte:.4f} bits per byte beside the {champion.bits_per_byte:.4f} of version "
        f"{champion.version} on the same text"
    )
    if (paired := paired_interval(ours.documents, champion.documents)) is not None:
        low, high, n = paired
        if n < FEWEST_DOCUMENTS:
            return False, f"{figures}; {n} test document cannot show what chance does; {by_hand}"
        return high < 0, (
            f"{figures}; the paired 95% interval of the difference over {n} documents, {low:+.4f} to {high:+.4f}, "
            f"{'is' if high < 0 else 'is not'} below 0"
        )
    bound, named = champion.low, f"its {champion.low:.4f} to {champion.high:.4f}"
    if math.isnan(bound):
        bound, named = champion.bits_per_byte, "its figure, which has no interval"
    better = ours.low < ours.high < bound  # an interval without width is that of a single document
    return better, (
        f"{figures}; without the losses of both by document: the 95% interval {ours.low:.4f} to {ours.high:.4f} "
        f"{'is' if better else 'is not'} below {named}"
    )


def comparable(one: Measured, other: Measured) -> bool:
    """Whether both were measured on the same text in the same precision."""
    return (one.eval_sha256, one.precision) == (other.eval_sha256, other.precision)


def lack_of(measured: Measured) -> str:
    """What a version must have to be compared and has not; empty where it has all."""
    if not math.isfinite(measured.bits_per_byte):
        return "finite bits per byte"
    return "" if measured.eval_sha256 else "hash of its test text (eval_sha256)"


def paired_interval(ours: Path | None, theirs: Path | None) -> tuple[float, float, int] | None:
    """The 95% interval of our bits per byte less theirs, and how many documents; None where it cannot be had."""
    if ours is None or theirs is None:
        return None
    (names, n_bytes, a), (other_names, other_bytes, b) = read_documents(ours), read_documents(theirs)
    if not names or names != other_names or not np.array_equal(n_bytes, other_bytes):
        return None
    if len(names) < FEWEST_DOCUMENTS:
        return -math.inf, math.inf, len(names)
    return *student_interval(a - b, n_bytes / n_bytes.sum()), len(names)


def student_interval(differences: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the weighted mean of two or more differences; the weights sum to 1."""
    from scipy.special import stdtrit

    n, mean = len(differences), float(weights @ differences)
    moved = weights * (differences - mean) / (1 - weights)  # how far the mean moves without each document
    error = math.sqrt((n - 1) / n * float(moved @ moved))
    freedom = 1 / float(weights @ weights) - 1
    half = float(stdtrit(freedom, 0.975)) * error if error else 0.0
    return mean - half, mean + half


def read_documents(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, bytes, and bits per byte of the documents in evaluate's documents.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_bytes = np.array([float(row["bytes"]) for row in rows])
    return [row["document"] for row in rows], n_bytes, np.array([float(row["bits_per_byte"]) for row in rows])
