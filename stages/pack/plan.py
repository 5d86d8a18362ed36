"""Decides which slots of which row each document fills. Lengths in, places out; no token is touched.

best_fit: a document longer than T is cut into rows of T and a rest; no other document is ever cut.
Then rows are filled one after another, each begun with the longest piece left, and completed exactly where
one or two pieces can (best_fit.py). Example with T = 8 and lengths 5, 4, 3: row 0 = 5 + 3, row 1 = 4.

concat: documents one after another, cut wherever a row ends. Nothing is padded but the last row, and
many documents lose their beginning: T = 8 and 5, 4, 3 give row 0 = 5 + 3 of the 4, row 1 = 1 + 3.

A plan is a few arrays with about 30 bytes a document (best_fit; 8 for concat), and gives the segments
of a range of rows when they are written: whoever writes a shard opens the plan and asks for its rows.
What best_fit leaves empty depends on the lengths alone: the gap beside a piece just shorter than T takes
only pieces shorter than the gap, so padding is what short pieces are too few for (docs/pack.md).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.pack.best_fit import share_rows
from stages.store import save_array

Integers = npt.NDArray[np.int64]


class Segments(NamedTuple):
    """Segments in the order of rows, and within a row in the order of slots; int64 arrays.

    Attributes:
        rows, documents, offsets, lengths: of each segment; `offset` counts from the document's start.
    """

    rows: Integers
    documents: Integers
    offsets: Integers
    lengths: Integers


class Plan(Protocol):
    """Which rows there are, and what stands in them."""

    strategy: ClassVar[str]

    @property
    def n_rows(self) -> int: ...

    @property
    def needless_cuts(self) -> int:
        """Documents cut although they fit into one row."""

    def segments(self, first: int, last: int) -> Segments:
        """What fills the rows first .. last - 1."""


@dataclasses.dataclass(frozen=True)
class BestFitPlan:
    """Rows filled by one document come first, in the order of documents; then those that pieces share.

    Attributes:
        lengths: of the documents, in slots.
        full_ends: the number of full rows of all documents up to and with each.
        row_starts: the pieces of shared row i are pieces[row_starts[i] : row_starts[i + 1]].
        pieces: documents whose last piece stands there, ascending in each row.
    """

    strategy: ClassVar[str] = "best_fit"
    needless_cuts: ClassVar[int] = 0
    context_length: int
    lengths: npt.NDArray[np.integer]
    full_ends: Integers
    row_starts: npt.NDArray[np.integer]
    pieces: npt.NDArray[np.integer]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.integer], context_length: int) -> BestFitPlan:
        """The plan for documents of these lengths (at least 1 each)."""
        full_ends = np.cumsum(lengths // context_length, dtype=np.int64)
        row_starts, pieces = share_rows(lengths, context_length)
        return cls(context_length, lengths, full_ends, row_starts, pieces)

    @property
    def n_full(self) -> int:
        return int(self.full_ends[-1]) if len(self.full_ends) else 0

    @property
    def n_rows(self) -> int:
        return self.n_full + len(self.row_starts) - 1

    def segments(self, first: int, last: int) -> Segments:
        T, n_full = self.context_length, self.n_full
        rows_full = np.arange(min(first, n_full), min(last, n_full), dtype=np.int64)
        documents_full = np.searchsorted(self.full_ends, rows_full, side="right")
        before = self.full_ends[documents_full] - self.lengths[documents_full].astype(np.int64) // T
        starts = self.row_starts[max(first - n_full, 0) : max(last - n_full, 0) + 1].astype(np.int64)
        if last <= n_full:
            starts = starts[:1]
        documents = self.pieces[starts[0] : starts[-1]].astype(np.int64)
        rests = self.lengths[documents].astype(np.int64) % T
        return Segments(
            rows=np.concatenate(
                [rows_full, max(first, n_full) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))]
            ),
            documents=np.concatenate([documents_full, documents]),
            offsets=np.concatenate([(rows_full - before) * T, self.lengths[documents] - rests]),
            lengths=np.concatenate([np.full(len(rows_full), T, np.int64), rests]),
        )


@dataclasses.dataclass(frozen=True)
class ConcatPlan:
    """Documents laid end to end.

    Attributes:
        ends: the slot after the last one of each document.
    """

    strategy: ClassVar[str] = "concat"
    context_length: int
    ends: Integers

    @classmethod
    def of(cls, lengths: npt.NDArray[np.integer], context_length: int) -> ConcatPlan:
        return cls(context_length, np.cumsum(lengths, dtype=np.int64))

    @property
    def n_slots(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def n_rows(self) -> int:
        return -(-self.n_slots // self.context_length)

    @property
    def needless_cuts(self) -> int:
        lengths = np.diff(self.ends, prepend=0)
        is_cut = (self.ends - lengths) // self.context_length != (self.ends - 1) // self.context_length
        return int((is_cut & (lengths <= self.context_length)).sum())

    def segments(self, first: int, last: int) -> Segments:
        T = self.context_length
        stop = min(last * T, self.n_slots)
        inside = self.ends[np.searchsorted(self.ends, first * T, side="right") : np.searchsorted(self.ends, stop)]
        cuts = np.unique(np.concatenate([np.arange(first * T, stop, T, dtype=np.int64), inside]))
        documents = np.searchsorted(self.ends, cuts, side="right")
        starts = np.where(documents > 0, self.ends[documents - 1], 0)
        return Segments(cuts // T, documents, cuts - starts, np.diff(np.append(cuts, stop)))


STRATEGIES: dict[str, type[BestFitPlan] | type[ConcatPlan]] = {"best_fit": BestFitPlan, "concat": ConcatPlan}


def make_plan(strategy: str, lengths: npt.NDArray[np.integer], context_length: int) -> BestFitPlan | ConcatPlan:
    """Rows for documents of these lengths in slots."""
    return STRATEGIES[strategy].of(lengths, context_length)


def save_plan(plan: BestFitPlan | ConcatPlan, folder: Path) -> None:
    """One file an array, for those who write shards."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps([plan.strategy, plan.context_length]))
    for field in dataclasses.fields(plan)[1:]:
        save_array(folder / f"{field.name}.npy", getattr(plan, field.name))


def open_plan(folder: Path) -> BestFitPlan | ConcatPlan:
    """A saved plan; its arrays stay in their files, and pages that are looked at come into memory."""
    strategy, context_length = json.loads((folder / "plan.json").read_text())
    kind = STRATEGIES[strategy]
    names = [field.name for field in dataclasses.fields(kind)[1:]]
    return kind(context_length, *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))
