"""What the data stages left in data/, read for people: documents, counts, and where a stage has not run.

Documents come as dictionaries {id, text, source, split}, streamed, in the order of the shards; what a
stage does not know (`download` has no split) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.errors import BadInput

STAGES = ("download", "clean", "dedup", "pack")
MARKERS = {
    "download": "manifest.json",
    "clean": "metrics.json",
    "dedup": "keep.parquet",
    "tokenizer": "tokenizer.json",
    "pack": "metrics.json",
}
BATCH_ROWS = 1024
Documents = Iterator[dict[str, Any]]


def has_run(root: Path, stage: str) -> bool:
    return (root / "data" / stage / MARKERS[stage]).exists()


def need(root: Path, stage: str) -> Path:
    """The folder of a stage's outputs.

    Raises:
        BadInput: it has not run here.
    """
    if not has_run(root, stage):
        raise BadInput(f"data/{stage}: nothing here yet; run `millrace run {stage}` (or `dvc repro {stage}`)")
    return root / "data" / stage


def record_batches(folder: Path, columns: list[str]) -> Iterator[Any]:
    """The rows of Parquet files, in the order of their names, a thousand at a time."""
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)


def documents(root: Path, stage: str) -> Documents:
    """The documents that a stage passes on.

    Raises:
        BadInput: it has not run.
    """
    need(root, stage)
    if stage == "download":
        from stages.sources import read_corpus

        for document in read_corpus(root):
            yield {"id": document.id, "source": document.source, "text": document.text}
        return
    columns = ["id", "source", "split", "text"]
    if stage == "clean":
        for batch in record_batches(need(root, "clean") / "documents", columns):
            yield from batch.to_pylist()
        return
    from stages.kept import kept_parts

    for part in kept_parts(need(root, "clean") / "documents", need(root, "dedup") / "keep.parquet"):
        for batch in part.batches(columns):
            yield from batch.to_pylist()


def chosen(found: Documents, source: str | None, split: str | None) -> Documents:
    """The documents of a source and of a split, where these are named."""
    for document in found:
        if source in (None, document["source"]) and split in (None, document.get("split")):
            yield document


def stats(root: Path, stage: str) -> list[dict[str, Any]]:
    """Per source and split, and in all: documents, bytes, and lengths in bytes; for pack: tokens and repeats."""
    if stage == "pack":
        return _pack_stats(need(root, "pack"))
    import numpy as np

    lengths: dict[tuple[str, str], list[int]] = {}
    for document in documents(root, stage):
        key = (document["source"], document.get("split", ""))
        lengths.setdefault(key, []).append(len(document["text"].encode()))
    arrays = {key: np.array(values, np.int64) for key, values in lengths.items()}
    rows = [_described(*key, values) for key, values in sorted(arrays.items())]
    if arrays:
        rows.append(_described("(all)", "", np.concatenate(list(arrays.values()))))
    return rows


def _described(source: str, split: str, lengths: Any) -> dict[str, Any]:
    import numpy as np

    low, median, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    row: dict[str, Any] = {"source": source, "split": split} if split else {"source": source}
    counts = {"documents": len(lengths), "bytes": int(lengths.sum())}
    spread = {"shortest": int(lengths.min()), "5%": int(low), "median": int(median), "95%": int(high)}
    return {**row, **counts, **spread, "longest": int(lengths.max())}


def _pack_stats(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for split in ("train", "validation", "test"):
        index = json.loads((folder / split / "index.json").read_text(encoding="utf-8"))
        for source, counts in index.get("sources", {}).items():
            share = counts["tokens"] / max(index["tokens"], 1)
            rows.append({"source": source, "split": split, **counts, "share": round(share, 4)})
        total = {"documents": index["documents"], "tokens": index["tokens"], "rows": index["rows"]}
        rows.append({"source": "(all)", "split": split, **total, "padding": index["padding"], "share": 1.0})
    return rows


def nearest(wanted: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The ids most like one that does not exist: those that hold it, else with most of beginning and end in common."""
    import heapq

    def likeness(name: str) -> tuple[bool, int]:
        return (wanted.lower() in name.lower(), _common(name, wanted) + _common(name[::-1], wanted[::-1]))

    return heapq.nlargest(count, names, key=likeness)


def _common(first: str, second: str) -> int:
    """How many characters two names have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
