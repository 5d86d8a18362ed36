"""The loss of whole documents, in windows that overlap, so that few labels have little context.

Cut without overlap, the first label behind each cut has a context of one token, and short contexts predict
badly. Here each further window begins `overlap` of its length earlier, and only its new labels count:

    T = 8, overlap 0.5, a document of 14 labels    counted       inputs 0..7, labels  0..7
                                                                 inputs 4..11, labels 8..11
                                                                 inputs 6..13, labels 12..13

So every label but the first T has at least T * overlap tokens of context, for 1 / (1 - overlap) times the work.
Every label counts once, whatever the overlap; with 0 this is the loss of documents cut where training cuts them.
Windows are packed into rows beside each other, which changes nothing: segments keep them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.scoring import Scorer
from stages.perplexity import ROWS_PER_FORWARD
from stages.progress import progress
from stages.row_kernel import IGNORED_LABEL, NO_SEGMENT
from stages.tokens import Batch

IntArray = NDArray[np.int64]


class Window(NamedTuple):
    """Labels `start` to `end` of a document, of which those from `counted` on are new."""

    document: int
    start: int
    counted: int
    end: int


def windows_of(lengths: Sequence[int], context_length: int, overlap: float) -> Iterator[Window]:
    """The windows of documents with so many labels."""
    step = max(1, round(context_length * (1 - overlap)))
    for document, length in enumerate(lengths):
        counted, end = 0, min(context_length, length)
        while counted < length:
            yield Window(document, max(0, end - context_length) if overlap else counted, counted, end)
            counted, end = end, min(end + step, length)


def document_nll(
    score: Scorer, documents: Sequence[IntArray], end_of_text: int, context_length: int, overlap: float, title: str
) -> NDArray[np.float64]:
    """Nats of each document, given as labels t1 .. tn and end-of-text, [D]."""
    nll = np.zeros(len(documents))
    rows = list(_rows(windows_of([len(d) for d in documents], context_length, overlap), context_length))
    with progress(title, len(rows), "rows") as bar:
        for first in range(0, len(rows), ROWS_PER_FORWARD):
            some = rows[first : first + ROWS_PER_FORWARD]
            batch = _batch(some, documents, end_of_text, context_length)
            losses = score(batch)
            for row, windows in enumerate(some):
                begin = 0
                for window in windows:
                    nll[window.document] += losses[row, begin : begin + window.end - window.start].sum(dtype=np.float64)
                    begin += window.end - window.start
            bar.update(len(some))
    return nll


def _rows(windows: Iterator[Window], context_length: int) -> Iterator[list[Window]]:
    """Windows side by side, as long as the next one fits."""
    row: list[Window] = []
    free = context_length
    for window in windows:
        length = window.end - window.start
        if length > free:
            yield row
            row, free = [], context_length
        row.append(window)
        free -= length
    if row:
        yield row


def _batch(
    rows: Sequence[Sequence[Window]], documents: Sequence[IntArray], end_of_text: int, context_length: int
) -> Batch:
    shape = (len(rows), context_length)
    batch = Batch(
        np.full(shape, end_of_text),
        np.full(shape, IGNORED_LABEL),
        np.full(shape, NO_SEGMENT),
        np.zeros(shape, np.int64),
    )
    for row, windows in enumerate(rows):
        begin = 0
        for segment, (document, start, counted, end) in enumerate(windows):
            slots = slice(begin, begin + end - start)
            labels = documents[document]
            before = [end_of_text] if start == 0 else labels[start - 1 : start]
            batch.inputs[row, slots] = np.concatenate((before, labels[start : end - 1]))
            batch.labels[row, begin + counted - start : slots.stop] = labels[counted:end]
            batch.segments[row, slots] = segment
            batch.positions[row, slots] = np.arange(end - start)
            begin = slots.stop
    return batch
