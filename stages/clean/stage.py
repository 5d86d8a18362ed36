"""Writes clean text once, each document with its split, and a verdict on every document.

For each document: HTML becomes text, text is normalised (`text.py`), rules decide (`rules.py`). The
split is drawn from the raw text, before any of that, so no rule can move a document from test to
train. Example: of 3 documents one is 5 words long; documents/ has 2 rows, verdicts/ has 3, the short
one with kept=false, rule=min_words, value=5, threshold=20.

Batches of documents go to worker processes and come back in order: same bytes for any number.
Duplicates are the next stage's work.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from stages.clean.html_text import html_to_text
from stages.clean.params import CleanParams
from stages.clean.rules import EMPTY, RULES, Failure, first_failure
from stages.clean.text import normalise
from stages.documents import ShardWriter
from stages.entry import Job, write_json
from stages.errors import BadInput
from stages.progress import progress, say
from stages.sources import Document, read_corpus, read_manifest
from stages.splits import SplitParams, split_of
from stages.workers import batches, ordered_map

BATCH_CHARACTERS = 1 << 20
STRING = pa.string()
DOCUMENTS = pa.schema([("id", STRING), ("text", STRING), ("source", STRING), ("split", STRING)])
VERDICTS = pa.schema(
    [("id", STRING), ("kept", pa.bool_()), ("rule", STRING), ("value", pa.float64()), ("threshold", pa.float64())]
)


class Cleaned(NamedTuple):
    """One document after cleaning, kept or not."""

    id: str
    text: str
    source: str
    split: str
    bytes_in: int
    failure: Failure | None


def run(job: Job, clean: CleanParams, split: SplitParams) -> None:
    """Writes documents/*.parquet, verdicts/*.parquet and metrics.json.

    Raises:
        BadInput: a document that cannot be read, or nothing left in a split.
    """
    documents = ShardWriter(job.staging / "documents", DOCUMENTS)
    verdicts = ShardWriter(job.staging / "verdicts", VERDICTS)
    counts: Counter[str] = Counter(dict.fromkeys(metric_names(), 0))
    expected = read_manifest(job.root)["documents"]
    groups = batches(read_corpus(job.root), lambda document: len(document.text), BATCH_CHARACTERS)
    clean_batch = partial(clean_documents, clean=clean, split=split)
    with progress("clean", expected, "documents") as bar:
        for results in ordered_map(clean_batch, groups, job.execution.n_workers()):
            for result in results:
                count(counts, result)
                verdicts.add(verdict_row(result))
                if not result.failure:
                    documents.add(
                        {"id": result.id, "text": result.text, "source": result.source, "split": result.split}
                    )
            bar.update(len(results))
    documents.close()
    verdicts.close()
    check_counts(counts, split)
    write_json(job.staging / "metrics.json", dict(counts))
    dropped = {rule: counts[f"dropped.{rule}"] for rule in (EMPTY, *RULES) if counts[f"dropped.{rule}"]}
    say(f"clean: kept {counts['documents_out']:,} of {counts['documents_in']:,} documents; dropped {dropped or 'none'}")


def clean_documents(documents: list[Document], clean: CleanParams, split: SplitParams) -> list[Cleaned]:
    """One batch, in its order."""
    return [clean_document(document, clean, split) for document in documents]


def clean_document(document: Document, clean: CleanParams, split: SplitParams) -> Cleaned:
    is_html = clean.html == "always" or (clean.html == "auto" and document.is_html)
    text = normalise(html_to_text(document.text) if is_html else document.text)
    failure = first_failure(text, clean)
    return Cleaned(
        document.id,
        "" if failure else text,
        document.source,
        split_of(document.text, split),
        len(document.text.encode()),
        failure,
    )


def metric_names() -> list[str]:
    names = ["documents_in", "documents_out", "bytes_in", "bytes_out", "documents_validation", "documents_test"]
    return names + [f"dropped.{rule}" for rule in (EMPTY, *RULES)]


def count(counts: Counter[str], result: Cleaned) -> None:
    """Adds one document to the metrics."""
    counts["documents_in"] += 1
    counts["bytes_in"] += result.bytes_in
    if result.failure:
        counts[f"dropped.{result.failure.rule}"] += 1
        return
    counts["documents_out"] += 1
    counts["bytes_out"] += len(result.text.encode())
    if result.split != "train":
        counts[f"documents_{result.split}"] += 1


def verdict_row(result: Cleaned) -> dict[str, Any]:
    """A row of verdicts/; rule, value and threshold are null for a document that was kept."""
    rule, value, threshold = result.failure or (None, None, None)
    return {"id": result.id, "kept": result.failure is None, "rule": rule, "value": value, "threshold": threshold}


def check_counts(counts: Counter[str], split: SplitParams) -> None:
    """Refuses a corpus that later stages could not train on or measure with.

    Raises:
        BadInput: names the param to change.
    """
    kept = counts["documents_out"]
    if not kept:
        worst = max((EMPTY, *RULES), key=lambda rule: counts[f"dropped.{rule}"])
        dropped = f"{counts[f'dropped.{worst}']} of {counts['documents_in']} were dropped by {worst}"
        mend = "give documents with text" if worst == EMPTY else f"change clean.{worst} (null switches it off)"
        raise BadInput(f"no document is left after cleaning: {dropped}; {mend}")
    for name, fraction in (("validation", split.validation), ("test", split.test)):
        if not counts[f"documents_{name}"]:
            raise BadInput(
                f"split.{name} {fraction:g} of {kept} documents reserved none for {name}; raise split.{name}, for "
                f"example to {min(0.2, max(2 * fraction, 10 / kept)):.2g}, or take more documents"
            )
    if kept == counts["documents_validation"] + counts["documents_test"]:
        raise BadInput(f"all {kept} documents are reserved, none is left to train on; take more documents")
