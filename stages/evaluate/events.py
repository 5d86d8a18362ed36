"""The events that the model and its baselines predict, as one long sequence of symbols.

A document `a b` is three events: a, b and end-of-text E. What comes before the first is the context
E E. The sequence holds every context and event once, and marks the events:

    symbols  E E a b E        n-grams of order 3 that end at an event:
    event    . . x x x        E E a, E a b, a b E

Training text is taken from the very rows that the model read. A row may hold the middle of a long
document: then only the input before its first label is known, and the symbol "unknown" stands
before that. The test text is taken by whole documents, so n-grams see across the cuts at which the
model starts afresh.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from stages.errors import BadInput
from stages.evaluate.token_bytes import END_OF_DOCUMENT, TokenBytes
from stages.tokens import IGNORED_LABEL, TokenRows

HIGHEST_ORDER = 3
ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Events:
    """A text in an alphabet.

    Attributes:
        symbols: contexts and events, int64 [N]; at least two context symbols before every run of events.
        is_event: which of them are predicted, bool [N].
        vocab_size: predictable symbols are 0 .. vocab_size - 1; `vocab_size` itself means "unknown".
    """

    symbols: NDArray[np.int64]
    is_event: NDArray[np.bool_]
    vocab_size: int

    @property
    def base(self) -> int:
        return self.vocab_size + 1

    def labels(self) -> NDArray[np.int64]:
        return self.symbols[self.is_event]

    def keys(self, order: int) -> NDArray[np.uint64]:
        """The n-grams that end at each event, packed into integers with the last symbol lowest.

        Raises:
            BadInput: the vocabulary is too large for `order` symbols in 64 bits.
        """
        if self.base**order > 2**64:
            raise BadInput(f"a vocabulary of {self.vocab_size} is too large for n-grams of order {order} in 64 bits")
        ends = np.flatnonzero(self.is_event)
        keys = np.zeros(len(ends), np.uint64)
        for back in range(order - 1, -1, -1):
            keys = keys * np.uint64(self.base) + self.symbols[ends - back].astype(np.uint64)
        return keys


def events_of_rows(rows: TokenRows, row_ids: NDArray[np.int64], end_of_text: int) -> Events:
    """The labels of these rows, each segment behind its context."""
    parts = []
    for first in range(0, len(row_ids), ROWS_AT_ONCE):
        batch = rows.batch(row_ids[first : first + ROWS_AT_ONCE])
        real = batch.labels != IGNORED_LABEL
        starts = batch.positions[real] == 0
        inputs = batch.inputs[real][starts]
        before = np.where(inputs == end_of_text, end_of_text, rows.vocab_size)
        parts.append(_with_contexts(batch.labels[real], starts, np.stack((before, inputs), axis=1)))
    if not parts:
        return Events(np.empty(0, np.int64), np.empty(0, bool), rows.vocab_size)
    symbols, is_event = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Events(symbols, is_event, rows.vocab_size)


def events_of_documents(documents: list[NDArray[np.int64]], end_of_text: int, vocab_size: int) -> Events:
    """Whole documents, each given with its end-of-text."""
    labels = np.concatenate(documents)
    starts = np.zeros(len(labels), bool)
    starts[np.cumsum([0, *(len(document) for document in documents[:-1])])] = True
    contexts = np.full((len(documents), HIGHEST_ORDER - 1), end_of_text)
    return Events(*_with_contexts(labels, starts, contexts), vocab_size)


def in_bytes(events: Events, table: TokenBytes) -> Events:
    """The same text as bytes: 0..255, 256 for the end of a document, 257 for unknown."""
    known = events.symbols < events.vocab_size
    lengths = np.ones(len(events.symbols), np.int64)
    lengths[known] = table.lengths[events.symbols[known]]
    symbols = np.full(lengths.sum(), END_OF_DOCUMENT + 1)
    symbols[np.repeat(known, lengths)] = table.expand(events.symbols[known])
    return Events(symbols, np.repeat(events.is_event, lengths), END_OF_DOCUMENT + 1)


def _with_contexts(
    labels: NDArray[np.int64], starts: NDArray[np.bool_], contexts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Puts a row of `contexts` before each label at which a run starts."""
    width = contexts.shape[1]
    places = np.arange(len(labels)) + width * np.cumsum(starts)
    is_event = np.zeros(len(labels) + width * len(contexts), bool)
    is_event[places] = True
    symbols = np.empty(len(is_event), np.int64)
    symbols[is_event], symbols[~is_event] = labels, contexts.ravel()
    return symbols, is_event
