"""The model's loss on every label of the test split, and what follows from it.

Example: two documents of 100 and 300 bytes with 100 and 200 nats have (100 + 200) / ln 2 / 400 = 1.08
bits per byte. The interval comes from the bootstrap over documents (Efron, 1979): documents are drawn
again and again with replacement, as many as there are, and the middle 95% of the results is given.
Tokens of one document are not independent, so drawing tokens would make it too narrow.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.scoring import Scorer
from stages.perplexity import ROWS_PER_FORWARD
from stages.progress import progress
from stages.tokens import IGNORED_LABEL, TokenRows

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LabelLosses:
    """One entry per label of a split, in the order of its rows, [N].

    Attributes:
        nll: nats.
        labels: token ids.
        positions: slots of context before the label's input, 0 at the start of a segment.
        documents: the number of the document within the split.
    """

    nll: FloatArray
    labels: IntArray
    positions: IntArray
    documents: IntArray

    def by_document(self) -> FloatArray:
        """Nats per document, in the order of documents."""
        return np.bincount(self.documents, self.nll).astype(np.float64)


def label_losses(score: Scorer, rows: TokenRows, title: str) -> LabelLosses:
    """Runs the model over all rows of a split."""
    nll, labels, positions = [], [], []
    with progress(title, rows.n_rows, "rows") as bar:
        for first in range(0, rows.n_rows, ROWS_PER_FORWARD):
            batch = rows.batch(np.arange(first, min(first + ROWS_PER_FORWARD, rows.n_rows)))
            real = batch.labels != IGNORED_LABEL
            nll.append(score(batch)[real].astype(np.float64))
            labels.append(batch.labels[real])
            positions.append(batch.positions[real])
            bar.update(len(batch.labels))
    _, documents, lengths = rows.segment_table()
    return LabelLosses(
        np.concatenate(nll), np.concatenate(labels), np.concatenate(positions), np.repeat(documents, lengths)
    )


def bits_per_byte(nll: FloatArray, n_bytes: IntArray) -> float:
    """Of documents with these nats and bytes, each [D]."""
    return float(nll.sum() / math.log(2) / n_bytes.sum())


def bootstrap_interval(nll: FloatArray, n_bytes: IntArray, samples: int, seed: int) -> tuple[float, float]:
    """The 2.5% and 97.5% points of bits per byte over resampled documents."""
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(samples):
        drawn = generator.integers(len(nll), size=len(nll))
        results.append(bits_per_byte(nll[drawn], n_bytes[drawn]))
    low, high = np.quantile(results, [0.025, 0.975])
    return float(low), float(high)
