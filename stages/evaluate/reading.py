"""Reads what the stage evaluates: the splits, the tokenizer, and the training rows that the model had read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.checkpoint import model_config
from stages.entry import Job
from stages.errors import BadInput
from stages.evaluate.baselines import rows_seen
from stages.evaluate.events import Events, events_of_documents, events_of_rows
from stages.evaluate.params import EvaluateParams
from stages.evaluate.texts import read_documents
from stages.evaluate.token_bytes import TokenBytes
from stages.files import file_sha256
from stages.progress import say
from stages.tokens import TokenRows

Documents = list[NDArray[np.int64]]  # labels t1 .. tn and end-of-text of each


@dataclasses.dataclass(frozen=True)
class Text:
    """What the model and the baselines are evaluated on, and what they were trained on.

    Attributes:
        rows: the test split; `documents` are its documents whole, `test` the same as events.
        n_bytes: UTF-8 bytes of every test document, int64 [D]. sources: where each is from, [D].
        validation: the rows of that split. texts: documents of each file of `evaluate.texts`.
        train: the training text that the model read, as events; `train_rows` and `seen` are its rows.
    """

    rows: TokenRows
    table: TokenBytes
    documents: Documents
    n_bytes: NDArray[np.int64]
    sources: list[str]
    test: Events
    validation: TokenRows
    texts: dict[str, Documents]
    train: Events
    train_rows: TokenRows
    seen: NDArray[np.int64]

    def n_slots(self, overlap: float) -> int:
        """Slots of rows that the model reads for all losses, about: each text once, and once in overlapping windows."""
        labels = sum(map(len, (d for documents in self.texts.values() for d in documents)))
        slots = (self.rows.n_rows + self.validation.n_rows) * self.rows.context_length + labels
        return round(slots * (1 + 1 / (1 - overlap)))


def read_text(job: Job, state: dict[str, Any], params: EvaluateParams) -> Text:
    """Raises BadInput where there is no test text, or text, model and tokenizer do not belong together."""
    data = job.root / "data"
    rows, train_rows, validation = (TokenRows(data / "pack" / split) for split in ("test", "train", "validation"))
    if not rows.n_rows:
        raise BadInput("data/pack/test: no document; raise split.test in params.yaml, or give more text")
    tokenizer, trained_with = data / "tokenizer/tokenizer.json", model_config(data / "train/best")[1]
    for place, of in (
        ("pack/test", rows.index),
        ("pack/validation", validation.index),
        ("pack/train", train_rows.index),
        ("train/best", trained_with),
    ):
        if of["tokenizer_sha256"] != file_sha256(tokenizer):
            raise BadInput(f"data/{place}: made with another tokenizer than data/tokenizer has; run `dvc repro`")
    table = TokenBytes(tokenizer)
    texts = {name: read_documents(job.root, name, text, table) for name, text in params.texts.items()}
    n_read = state["step"] * state["rows_per_step"]
    seen, passes = rows_seen(train_rows, state["seed"], n_read, params.max_baseline_tokens)
    train = events_of_rows(train_rows, seen, table.end_of_text)
    say(
        f"baselines: trained on {train.is_event.sum():,} tokens in {len(seen):,} rows of the {train_rows.n_rows:,}; "
        f"the model read these {passes:.2f} times, n-grams count them once"
    )
    documents = list(rows.documents())
    taken = pq.read_table(data / "pack/documents/test.parquet", columns=["source", "copies"]).to_pydict()
    return Text(
        rows=rows,
        table=table,
        documents=documents,
        n_bytes=bytes_of(documents, table),
        sources=[source for source, copies in zip(*taken.values(), strict=True) for _ in range(copies)],
        test=events_of_documents(documents, table.end_of_text, rows.vocab_size),
        validation=validation,
        texts=texts,
        train=train,
        train_rows=train_rows,
        seen=seen,
    )


def bytes_of(documents: Documents, table: TokenBytes) -> NDArray[np.int64]:
    return np.array([table.n_bytes(document) for document in documents], np.int64)
