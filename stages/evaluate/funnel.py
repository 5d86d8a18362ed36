"""What became of the corpus on its way to the model, from the metrics of the stages before.

Example: 2,903 documents downloaded, 2,831 of them clean, 2,805 without duplicates; 14 went because of
max_top_3gram_ratio, 13 were exact copies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

REASONS = {"exact_removed": "exact copies", "near_removed": "near copies", "leaked_removed": "near copies of test text"}


class Step(NamedTuple):
    """What is left behind a stage; tokens are counted from packing on."""

    name: str
    documents: int
    bytes: int
    tokens: int | None = None


class Funnel(NamedTuple):
    """The steps in their order, what each split has, and reasons with the documents they removed, most first."""

    steps: list[Step]
    splits: list[Step]
    removed: list[tuple[str, int]]


def read_funnel(folder: Path) -> Funnel:
    """From the outputs of the stages below `data`."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    download, clean = read("download/manifest.json"), read("clean/metrics.json")
    dedup, pack = read("dedup/metrics.json"), read("pack/metrics.json")
    splits = []
    for split in ("train", "validation", "test"):
        taken = pq.read_table(
            folder / f"pack/documents/{split}.parquet", columns=["bytes"], filters=pc.field("copies") > 0
        )["bytes"]  # a mixture may take a document several times: it counts once, as in the stages before
        splits.append(Step(split, len(taken), pc.sum(taken).as_py() or 0, pack[f"tokens_{split}"]))
    steps = [
        Step("downloaded", download["documents"], download["bytes"]),
        Step("cleaned", clean["documents_out"], clean["bytes_out"]),
        Step("without duplicates", dedup["documents_out"], dedup["bytes_out"]),
        Step(
            "packed",
            sum(step.documents for step in splits),
            sum(step.bytes for step in splits),
            sum(step.tokens or 0 for step in splits),
        ),
    ]
    dropped = {name.removeprefix("dropped."): n for name, n in clean.items() if name.startswith("dropped.")}
    removed = [(f"clean: {name.replace('_', ' ')}", n) for name, n in dropped.items()]
    removed += [(f"dedup: {words}", dedup.get(name, 0)) for name, words in REASONS.items()]
    removed.append(("pack: shares text with evaluation files", pack.get("contaminated_documents", 0)))
    return Funnel(steps, splits, sorted(((name, n) for name, n in removed if n), key=lambda row: (-row[1], row[0])))
