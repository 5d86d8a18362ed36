"""The rule by which a model becomes champion: better on the same text by more than chance explains.

Two models that are measured on the same documents find the same ones hard, so their figures rise and fall
together, and what counts is the difference on each document. The paired bootstrap (Efron, 1979; Koehn, 2004)
draws documents with replacement, as many as there are, again and again, and takes the middle 95% of the
differences in bits per byte.

Example: 29 documents; champion 1.7333 bits per byte (1.663 to 1.805), challenger 1.7121 (1.641 to 1.783). The two
intervals overlap almost whole, but the challenger is lower on 27 of the documents: the difference is -0.0212, its
interval -0.0290 to -0.0138. All of it is below 0, so the challenger wins.

Where the losses of a model on single documents are not at hand, its interval has to lie below the other's.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Measured:
    """A version and its figures on the test text; NaN where it has none.

    Attributes:
        low, high: the 95% interval of bits_per_byte.
        documents: the file documents.csv of evaluate, or None.
    """

    version: str
    bits_per_byte: float
    low: float
    high: float
    eval_sha256: str
    documents: Path | None = None


def verdict(ours: Measured, champion: Measured | None) -> tuple[bool, str]:
    """Whether `ours` takes the champion's place, and why or why not."""
    if champion is None:
        return True, f"the first, with {ours.bits_per_byte:.4f} bits per byte"
    if ours.eval_sha256 != champion.eval_sha256:
        theirs, mine = champion.eval_sha256 or "unknown", ours.eval_sha256 or "unknown"
        return False, (
            f"version {champion.version} was measured on other text ({theirs[:12]}, here {mine[:12]}); to choose this "
            f"one all the same: `millrace promote {ours.version} --force-reason WHY`"
        )
    figures = (
        f"{ours.bits_per_byte:.4f} bits per byte beside the {champion.bits_per_byte:.4f} of version "
        f"{champion.version} on the same text"
    )
    if (paired := paired_interval(ours.documents, champion.documents)) is not None:
        low, high, n = paired
        return high < 0, (
            f"{figures}; the paired 95% interval of the difference over {n} documents, {low:+.4f} to {high:+.4f}, "
            f"{'is' if high < 0 else 'is not'} below 0"
        )
    bound, named = champion.low, f"its {champion.low:.4f} to {champion.high:.4f}"
    if math.isnan(bound):
        bound, named = champion.bits_per_byte, "its figure, which has no interval"
    better = ours.high < bound
    return better, (
        f"{figures}; without the losses of both by document: the 95% interval {ours.low:.4f} to {ours.high:.4f} "
        f"{'is' if better else 'is not'} below {named}"
    )


def paired_interval(ours: Path | None, theirs: Path | None) -> tuple[float, float, int] | None:
    """The 95% interval of our bits per byte less theirs, and how many documents; None where it cannot be had."""
    if ours is None or theirs is None:
        return None
    (names, n_bytes, a), (other_names, other_bytes, b) = read_documents(ours), read_documents(theirs)
    if not names or names != other_names or not np.array_equal(n_bytes, other_bytes):
        return None
    generator, bits = np.random.default_rng(SEED), (a - b) * n_bytes
    results = []
    for _ in range(SAMPLES):
        drawn = generator.integers(len(names), size=len(names))
        results.append(bits[drawn].sum() / n_bytes[drawn].sum())
    low, high = np.quantile(results, [0.025, 0.975])
    return float(low), float(high), len(names)


def read_documents(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, bytes, and bits per byte of the documents in evaluate's documents.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_bytes = np.array([float(row["bytes"]) for row in rows])
    return [row["document"] for row in rows], n_bytes, np.array([float(row["bits_per_byte"]) for row in rows])
