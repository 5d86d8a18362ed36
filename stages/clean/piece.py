"""Cleans one piece of the corpus: reads its documents, judges them, and writes the shards of its result.

    documents-00000.parquet (id, text, source, split)      what is kept
    verdicts-00000.parquet (id, kept, rule, value, threshold)    one row a document
    told.json {counts, samples}                            for metrics.json and samples.json

Documents go through in batches of about a MB, so memory does not grow with the piece. A sample is a document
that a rule dropped, with the beginning of its text; which ones are taken is drawn by the hash of the id.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from stages.clean.html_text import html_to_text
from stages.clean.params import CleanParams
from stages.clean.rules import LINE_RULES, RULES, thresholds
from stages.clean.text import normalise, repair
from stages.documents import READ_OFTEN, READ_ONCE, SHARD_BYTES, write_documents
from stages.files import write_json
from stages.sources import Document, Part, read_part
from stages.splits import SplitParams, split_of
from stages.utf8 import text_buffers, text_column
from stages.workers import batches

BATCH_CHARACTERS = 1 << 20
SAMPLES_OF_PIECE, SAMPLE_CHARACTERS = 5, 400
LANGUAGE = "languages"  # the rule that drops a document in another language; beside RULES, because it asks a model
STRING = pa.string()
DOCUMENTS = pa.schema([("id", STRING), ("text", STRING), ("source", STRING), ("split", STRING)])
VERDICTS = pa.schema(
    [("id", STRING), ("kept", pa.bool_()), ("rule", STRING), ("value", pa.float64()), ("threshold", pa.float64())]
)


class Shards:
    """Writes tables into numbered files of about `SHARD_BYTES`; a table without rows makes no file."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, compression: str):
        self.folder, self.name, self.schema, self.compression = folder, name, schema, compression
        self.waiting: list[pa.Table] = []
        self.n_shards = 0

    def add(self, table: pa.Table) -> None:
        if table.num_rows:
            self.waiting.append(table)
        if sum(table.nbytes for table in self.waiting) >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        if self.waiting:
            path = self.folder / f"{self.name}-{self.n_shards:05d}.parquet"
            write_documents(pa.concat_tables(self.waiting).combine_chunks(), path, self.compression)
            self.waiting, self.n_shards = [], self.n_shards + 1


class Samples:
    """Some documents that each rule dropped: those whose ids have the smallest hashes."""

    def __init__(self) -> None:
        self.found: dict[str, list[dict[str, Any]]] = {}

    def add(self, rule: str, name: str, value: float, threshold: float, text: str) -> None:
        ours = self.found.setdefault(rule, [])
        order = xxhash.xxh3_64_hexdigest(name.encode())
        if len(ours) < SAMPLES_OF_PIECE or order < ours[-1]["order"]:
            ours.append(
                {"order": order, "id": name, "value": value, "threshold": threshold, "text": text[:SAMPLE_CHARACTERS]}
            )
            ours.sort(key=lambda one: one["order"])
            del ours[SAMPLES_OF_PIECE:]


def clean_piece(piece: list[Part], folder: Path, text_column: str, clean: CleanParams, split: SplitParams) -> None:
    """Writes the result of a piece into the folder."""
    documents = Shards(folder, "documents", DOCUMENTS, READ_OFTEN)
    verdicts = Shards(folder, "verdicts", VERDICTS, READ_ONCE)
    counts: Counter[str] = Counter(dict.fromkeys(metric_names(), 0))
    samples = Samples()
    found = (document for part in piece for document in read_part(part, text_column))
    for batch in batches(found, lambda document: len(document.text), BATCH_CHARACTERS):
        kept, judged = clean_batch(batch, clean, split, counts, samples)
        documents.add(kept)
        verdicts.add(judged)
    documents.close()
    verdicts.close()
    write_json(folder / "told.json", {"counts": dict(counts), "samples": samples.found})


def clean_batch(
    batch: list[Document], clean: CleanParams, split: SplitParams, counts: Counter[str], samples: Samples
) -> tuple[pa.Table, pa.Table]:
    """The kept documents and the verdicts of a batch; adds to counts and samples."""
    from stages.clean.judge import judge

    texts = [prepared(document, clean) for document in batch]
    data, offsets = text_buffers(text_column(texts))
    found = judge(data, offsets, clean)
    limits = thresholds(clean)
    dropped_by = [(RULES[rule], limits[rule]) if rule >= 0 else None for rule in found.rules.tolist()]
    values = found.values.tolist()
    texts_out = texts if found.texts is None else found.texts
    check_languages(texts_out, clean, dropped_by, values)
    for name, lines in zip(LINE_RULES, found.lines_removed.tolist(), strict=True):
        counts[f"lines_removed.{name}"] += lines
    kept: list[tuple[str, str, str, str]] = []
    for document, text, text_out, dropped, value in zip(batch, texts, texts_out, dropped_by, values, strict=True):
        counts["documents_in"] += 1
        counts["bytes_in"] += len(document.text.encode())
        counts["documents_with_nul"] += "\0" in document.text
        if dropped:
            counts[f"dropped.{dropped[0]}"] += 1
            samples.add(dropped[0], document.id, value, dropped[1], text)
            continue
        part = split_of(document.text, split)
        text_out = masked(text_out) if clean.mask_pii else text_out
        counts["documents_out"] += 1
        counts["bytes_out"] += len(text_out.encode())
        if part != "train":
            counts[f"documents_{part}"] += 1
        kept.append((document.id, text_out, document.source, part))
    columns = list(zip(*kept, strict=True)) or [()] * len(DOCUMENTS)
    documents = pa.table([text_column(column).cast(STRING) for column in columns], schema=DOCUMENTS)
    return documents, verdicts_table([document.id for document in batch], dropped_by, values)


def verdicts_table(names: list[str], dropped_by: list[tuple[str, float] | None], values: list[float]) -> pa.Table:
    """A row for each document; rule, value and threshold are null where no rule dropped it."""
    kept = np.array([dropped is None for dropped in dropped_by], np.bool_)
    place = pa.array(np.array([_place(dropped) for dropped in dropped_by], np.int32), mask=kept)
    thresholds_of = np.array([dropped[1] if dropped else 0.0 for dropped in dropped_by], np.float64)
    columns = [
        text_column(names).cast(STRING),
        pa.array(kept),
        text_column((*RULES, LANGUAGE)).cast(STRING).take(place),
        pa.array(np.array(values, np.float64), mask=kept),
        pa.array(thresholds_of, mask=kept),
    ]
    return pa.table(columns, schema=VERDICTS)


def _place(dropped: tuple[str, float] | None) -> int:
    return (*RULES, LANGUAGE).index(dropped[0]) if dropped else 0


def prepared(document: Document, clean: CleanParams) -> str:
    """The text as the rules see it."""
    is_html = clean.html == "always" or (clean.html == "auto" and document.is_html)
    text = html_to_text(document.text) if is_html else document.text
    if clean.fix_mojibake == "auto":
        text = repair(text)
    return normalise(text)


def check_languages(
    texts: list[str], clean: CleanParams, dropped_by: list[tuple[str, float] | None], values: list[float]
) -> None:
    """Drops what is left in another language than `clean.languages`; no language: all stay, nothing is asked."""
    if not clean.languages:
        return
    from stages.clean.language import language_of

    for place, text in enumerate(texts):
        if dropped_by[place] is None:
            language, score = language_of(text)
            if language not in clean.languages or score < clean.min_language_score:
                dropped_by[place] = (LANGUAGE, clean.min_language_score)
                values[place] = score if language in clean.languages else 0.0


def masked(text: str) -> str:
    from stages.clean.privacy import mask

    return mask(text)


def metric_names() -> list[str]:
    names = ["documents_in", "documents_out", "bytes_in", "bytes_out", "documents_validation", "documents_test"]
    names += ["documents_with_nul"]
    names += [f"dropped.{rule}" for rule in (*RULES, LANGUAGE)]
    return names + [f"lines_removed.{rule}" for rule in LINE_RULES]


def prepare_kernels(clean: CleanParams) -> None:
    """Compiles or loads what `judge` needs, so that worker processes inherit it."""
    from stages.clean.judge import judge

    judge(*text_buffers(text_column(["Some words.\n\nSome lines of words."])), clean)
