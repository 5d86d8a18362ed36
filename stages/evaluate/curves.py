"""Loss against context, frequency and source, as CSV files that `dvc plots show` draws.

Buckets are narrow at the start and double later, because both curves move on a logarithmic scale: a
position in context 0, 1, 2, 3, then 4-5, 6-7, 8-11, 12-15, 16-23 and so on; a token's frequency in the
training text 0, 1, 2-3, 4-7 and so on. A row's first column is the lower end of its bucket, `loss` the
mean in nats a token, `n` the number of test labels in it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.losses import LabelLosses

HEADERS = {
    "loss_by_position": ("position", "loss", "n"),
    "loss_by_frequency": ("frequency", "loss", "n"),
    "loss_by_source": ("source", "documents", "bytes", "bits_per_byte"),
    "documents": ("document", "bytes", "bits_per_byte"),
}


def position_edges(context_length: int) -> NDArray[np.int64]:
    """Lower ends of the position buckets: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24.. below the context length."""
    doubling = 2 ** np.arange(64)[: max(context_length, 1).bit_length()]
    edges = np.unique(np.concatenate(([0], doubling, doubling * 3 // 2)))
    return edges[edges < context_length].astype(np.int64)


def frequency_edges(highest: int) -> NDArray[np.int64]:
    """Lower ends of the frequency buckets: 0, 1, 2, 4, 8.. up to the highest frequency."""
    return np.concatenate(([0], 2 ** np.arange(max(highest, 1).bit_length()))).astype(np.int64)


def mean_by_bucket(
    values: NDArray[np.int64], losses: NDArray[np.float64], edges: NDArray[np.int64]
) -> list[tuple[int, float, int]]:
    """(lower end, mean loss, count) of every bucket that holds a value."""
    bucket = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(bucket, minlength=len(edges))
    sums = np.bincount(bucket, losses, minlength=len(edges))
    return [
        (int(edge), round(float(total / count), 6), int(count))
        for edge, total, count in zip(edges, sums, counts, strict=True)
        if count
    ]


def by_position(losses: LabelLosses, context_length: int) -> list[tuple[int, float, int]]:
    return mean_by_bucket(losses.positions, losses.nll, position_edges(context_length))


def by_frequency(losses: LabelLosses, train_labels: NDArray[np.int64], vocab_size: int) -> list[tuple[int, float, int]]:
    """By how often the label occurs in the training text."""
    frequency = np.bincount(train_labels, minlength=vocab_size)
    return mean_by_bucket(frequency[losses.labels], losses.nll, frequency_edges(int(frequency.max())))


def by_document(losses: LabelLosses, n_bytes: NDArray[np.int64]) -> list[tuple[int, int, float]]:
    """(document, bytes, bits per byte) of every document of the split."""
    bits = losses.by_document() / np.log(2)
    return [(i, int(b), round(float(bits[i] / b), 6)) for i, b in enumerate(n_bytes) if b]


def by_source(
    losses: LabelLosses, n_bytes: NDArray[np.int64], sources: Sequence[str]
) -> list[tuple[str, int, int, float]]:
    """(source, documents, bytes, bits per byte), by name; `sources` has that of every document."""
    names, which = np.unique(np.array(sources, dtype=object).astype(str), return_inverse=True)
    documents, total = np.bincount(which), np.bincount(which, n_bytes).astype(np.int64)
    nll = np.bincount(which, losses.by_document())
    return [
        (str(name), int(documents[k]), int(total[k]), round(float(nll[k] / math.log(2) / total[k]), 6))
        for k, name in enumerate(names)
        if total[k]
    ]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
