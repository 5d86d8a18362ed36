"""A workspace as clean and dedup leave it, and a run of one data stage in it."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.entry import Job
from stages.execution import Execution

ONE_WORKER = Execution(workers=1)


class Document(NamedTuple):
    id: str
    text: str
    split: str = "train"


def write_corpus(root: Path, documents: Iterable[Document], removed: Iterable[str] = (), n_shards: int = 2) -> None:
    """data/clean/documents in shards and data/dedup/keep.parquet, which lists all but `removed`."""
    documents, folder = list(documents), root / "data/clean/documents"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_shards):
        part = documents[number * len(documents) // n_shards : (number + 1) * len(documents) // n_shards]
        rows = [{**document._asdict(), "source": "test"} for document in part]
        schema = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "split")])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{number:05d}.parquet")
    kept = sorted({document.id for document in documents} - set(removed))
    (root / "data/dedup").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": kept, "cluster": kept}), root / "data/dedup/keep.parquet")


def run_stage(run: Callable[..., None], root: Path, execution: Execution = ONE_WORKER, **sections: Any) -> Path:
    """Runs and publishes a stage, and gives the folder it wrote."""
    job = Job(run.__module__.split(".")[1], root, execution)
    job.prepare()
    run(job, **sections)
    job.publish()
    return job.out


def prose(seed: int, n_words: int) -> str:
    """Words from a small vocabulary, with digits, line ends and a few characters that are not ASCII."""
    generator = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    words += ["don't", "x = 12345", "(see", "above).", "naïve", "日本語", "\n\n    indented", "été.\n", "🙂"]
    return " ".join(generator.choices(words, k=n_words))
