"""Made-up prose with near-copies of known similarity, and a run of the stage `dedup` on it."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.dedup import stage as dedup_stage
from stages.dedup.params import DedupParams
from stages.entry import Job
from stages.execution import Execution
from tests.stages.normalised import shingle_set

DEFAULT = DedupParams()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
Documents = list[tuple[str, str, str]]


def true_jaccard(first: str, second: str, ngram: int = 5) -> float:
    """By strings, in the words of the definition."""
    one, other = cached_set(first, ngram), cached_set(second, ngram)
    return len(one & other) / len(one | other)


cached_set = functools.lru_cache(maxsize=2000)(shingle_set)


def prose(seed: int, n_words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=n_words))


def changed(text: str, n_changes: int, seed: int = 0) -> str:
    """The text with some of its words replaced by ones that occur nowhere else."""
    words = text.split()
    for at in random.Random(seed).sample(range(len(words)), n_changes):
        words[at] = f"changed{seed}x{at}"
    return " ".join(words)


def train(*texts: str) -> Documents:
    return [(f"d{number}", text, "train") for number, text in enumerate(texts)]


def write_documents(root: Path, documents: Documents, n_shards: int = 2) -> None:
    """data/clean/documents from (id, text, split)."""
    folder = root / "data/clean/documents"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    for number in range(n_shards):
        part = documents[number * len(documents) // n_shards : (number + 1) * len(documents) // n_shards]
        columns = dict(zip(("id", "text", "split"), map(list, zip(*part, strict=True)), strict=True)) if part else {}
        table = pa.table({name: pa.array(columns.get(name, []), pa.string()) for name in ("id", "text", "split")})
        pq.write_table(table, folder / f"{number:05d}.parquet", row_group_size=50)


def dedup(root: Path, documents: Documents, params: DedupParams = DEFAULT, workers: int = 1, n_shards: int = 2) -> dict:
    """Runs the stage on (id, text, split) and gives metrics, keep and removals."""
    write_documents(root, documents, n_shards)
    job = Job("dedup", root, Execution(workers=workers))
    job.prepare()
    dedup_stage.run(job, params)
    job.publish()
    return {
        "metrics": json.loads((job.out / "metrics.json").read_text()),
        "keep": {row["id"]: row["cluster"] for row in pq.read_table(job.out / "keep.parquet").to_pylist()},
        "removals": {row["id"]: row for row in pq.read_table(job.out / "removals.parquet").to_pylist()},
    }
