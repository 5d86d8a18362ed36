"""What became of one document, stage by stage, from the records that the stages leave.

    millrace data explain news.jsonl:17

    clean   kept
    split   train
    dedup   removed: near-duplicate of news.jsonl:3 (Jaccard 0.913)

Nothing is computed again: verdicts say what clean measured, removals for whom a document went, pack's
record how often it was taken. So the answer is about the data as it lies there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.corpora.corpus import has_run, nearest, need, record_batches
from stages.errors import BadInput

SPLITS = ("train", "validation", "test")


def fate(root: Path, name: str) -> dict[str, Any]:
    """The facts, by stage; a stage that has not run, or never saw the document, is left out.

    Raises:
        BadInput: clean has not run, or knows no such document.
    """
    verdict = row_of(need(root, "clean") / "verdicts", name)
    if verdict is None:
        ids = (each for batch in record_batches(root / "data/clean/verdicts", ["id"]) for each in batch[0].to_pylist())
        raise BadInput(f"{name}: no document has this id; near ones are {', '.join(nearest(name, ids))}")
    facts: dict[str, Any] = {"id": name, "clean": {key: value for key, value in verdict.items() if key != "id"}}
    if not verdict["kept"]:
        return facts
    facts |= row_of(root / "data/clean/documents", name, ["id", "source", "split"]) or {}
    if has_run(root, "dedup"):
        removal = row_of(root / "data/dedup/removals.parquet", name)
        kept = row_of(root / "data/dedup/keep.parquet", name)
        if removal is None and kept is None:
            facts["dedup"] = {"stale": True}
            return facts
        facts["dedup"] = {"kept": kept is not None, **(removal or kept or {})}
        facts["dedup"].pop("id")
        if removal is not None:
            return facts
    if has_run(root, "pack"):
        facts["pack"] = packing(root / "data/pack/documents", name, facts["split"])
    return facts


def packing(folder: Path, name: str, split: str) -> dict[str, Any]:
    """How often a document was taken, where, and what was found in it."""
    number = 0
    facts: dict[str, Any] = {"stale": True}
    for batch in record_batches(folder / f"{split}.parquet", ["id", "tokens", "copies"]):
        ids = batch["id"].to_pylist()
        copies = batch["copies"].to_pylist()
        if name in ids:
            row = ids.index(name)
            first = number + sum(copies[:row])
            facts = {"copies": copies[row], "tokens": batch["tokens"][row].as_py(), "first_document": first}
            break
        number += sum(copies)
    for record in ("contaminated", "leaks"):
        found = row_of(folder / f"{record}.parquet", name)
        if found is not None:
            facts[record] = {key: value for key, value in found.items() if key != "id"}
    return facts


def row_of(path: Path, name: str, columns: list[str] | None = None) -> dict[str, Any] | None:
    """The row with this id in a Parquet file or a folder of them."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(file) as opened:
            names = columns or opened.schema_arrow.names
            for batch in opened.iter_batches(columns=names):
                found = batch.filter(pc.equal(batch["id"], name))
                if found.num_rows:
                    return found.to_pylist()[0]
    return None


def told(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines for people: a stage and a sentence."""
    clean = facts["clean"]
    if not clean["kept"]:
        return [("clean", f"dropped by the rule {clean['rule']}{_measured(clean)}")]
    lines = [("clean", f"kept, of source {facts.get('source')}"), ("split", str(facts.get("split")))]
    if "dedup" in facts:
        lines.append(("dedup", _dedup(facts["dedup"])))
    if "pack" in facts:
        lines += [("pack", sentence) for sentence in _pack(facts["pack"])]
    return lines


def _measured(verdict: dict[str, Any]) -> str:
    value, threshold = verdict.get("value"), verdict.get("threshold")
    if value is None:
        return ""
    limit = "" if threshold is None else f", the limit is {threshold:g}"
    return f": measured {value:g}{limit}"


STALE = "not in this stage's outputs, which are of another run; run `millrace run`"


def _dedup(facts: dict[str, Any]) -> str:
    if "stale" in facts:
        return STALE
    if facts["kept"]:
        return f"kept, in the cluster of {facts['cluster']}" if facts.get("cluster") else "kept"
    what = {
        "exact": "the same words as",
        "near": "a near-duplicate of",
        "leaked": "too like the reserved document",
    }.get(facts["rule"], f"{facts['rule']}:")
    jaccard = "" if facts.get("jaccard") is None else f" (Jaccard {facts['jaccard']:.3f})"
    return f"removed: {what} {facts['kept_id']}{jaccard}"


def _pack(facts: dict[str, Any]) -> list[str]:
    if "stale" in facts:
        return [STALE]
    lines = []
    if found := facts.get("contaminated"):
        lines.append(f"contaminated: shares {found['ngrams']} n-grams with {found['file']}, first: {found['first']!r}")
    if found := facts.get("leaks"):
        lines.append(
            f"warning: nearly repeats the reserved document {found['reserved_id']} (Jaccard {found['jaccard']:.3f})"
        )
    if not facts["copies"]:
        return [*lines, "left out" if "contaminated" in facts else "left out by pack.mixture"]
    times = "once" if facts["copies"] == 1 else f"{facts['copies']} times"
    first = facts["first_document"]
    numbers = f"document {first}" if facts["copies"] == 1 else f"documents {first} to {first + facts['copies'] - 1}"
    return [*lines, f"taken {times}, {facts['tokens']:,} tokens each time: {numbers} of its split"]
