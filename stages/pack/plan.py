"""Decides which slots of which row each document fills. Lengths in, places out; no token is touched.

best_fit: a document longer than T is cut into rows of T and a rest; no other document is ever cut.
Then, longest first, each piece goes to the fullest row in which it still fits (best-fit decreasing,
Johnson 1973). Example with T = 8 and lengths 5, 4, 3: row 0 = 5 + 3, row 1 = 4.

concat: documents one after another, cut wherever a row ends. Nothing is padded but the last row, and
many documents lose their beginning: T = 8 and 5, 4, 3 give row 0 = 5 + 3 of the 4, row 1 = 1 + 3.

A row's remaining space is a number from 0 to T, so the open rows hang in T + 1 lists, and the fullest
one that fits is found with one operation on an integer whose bits say which lists are not empty.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """Segments in the order of rows, and within a row in the order of slots; int64 arrays.

    Attributes:
        rows, documents, offsets, lengths: of each segment; `offset` counts from the document's start.
        needless_cuts: documents cut although they fit into one row.
    """

    n_rows: int
    rows: np.ndarray
    documents: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    needless_cuts: int


def plan_best_fit(document_lengths: np.ndarray, context_length: int) -> Plan:
    """Rows for documents of these lengths (in slots, at least 1 each)."""
    T = context_length
    full = document_lengths // T
    documents_full = np.repeat(np.arange(len(document_lengths)), full)
    offsets_full = (np.arange(len(documents_full)) - np.repeat(np.cumsum(full) - full, full)) * T
    rest = document_lengths - full * T
    documents_rest = np.flatnonzero(rest)
    rest = rest[documents_rest]
    order = np.argsort(-rest, kind="stable")
    rows_rest = np.empty(len(rest), np.int64)
    rows_rest[order], n_shared = best_fit(rest[order].tolist(), T)
    n_full = len(documents_full)
    return _sorted_plan(
        n_rows=n_full + n_shared,
        rows=np.concatenate([np.arange(n_full), n_full + rows_rest]),
        documents=np.concatenate([documents_full, documents_rest]),
        offsets=np.concatenate([offsets_full, full[documents_rest] * T]),
        lengths=np.concatenate([np.full(n_full, T), rest]),
        needless_cuts=0,
    )


def best_fit(lengths: list[int], context_length: int) -> tuple[list[int], int]:
    """The row of each piece, given longest first, and the number of rows."""
    open_rows: list[list[int]] = [[] for _ in range(context_length + 1)]
    nonempty = 0
    rows, n_rows = [], 0
    for length in lengths:
        fitting = nonempty >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[space].pop()
            if not open_rows[space]:
                nonempty &= ~(1 << space)
        else:
            row, space, n_rows = n_rows, context_length, n_rows + 1
        rows.append(row)
        left = space - length
        if left:
            open_rows[left].append(row)
            nonempty |= 1 << left
    return rows, n_rows


def plan_concat(document_lengths: np.ndarray, context_length: int) -> Plan:
    """Rows for documents laid end to end."""
    T = context_length
    ends = np.cumsum(document_lengths)
    starts = ends - document_lengths
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate([starts, np.arange(0, total, T, dtype=np.int64)]))
    documents = np.searchsorted(starts, cuts, side="right") - 1
    lengths = np.diff(np.append(cuts, total))
    pieces = np.bincount(documents, minlength=len(document_lengths))
    return Plan(
        n_rows=-(-total // T),
        rows=cuts // T,
        documents=documents,
        offsets=cuts - starts[documents],
        lengths=lengths,
        needless_cuts=int(((pieces > 1) & (document_lengths <= T)).sum()),
    )


def _sorted_plan(
    n_rows: int, rows: np.ndarray, documents: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, needless_cuts: int
) -> Plan:
    order = np.lexsort((documents, rows))
    return Plan(n_rows, rows[order], documents[order], offsets[order], lengths[order], needless_cuts)


PLANS = {"best_fit": plan_best_fit, "concat": plan_concat}
