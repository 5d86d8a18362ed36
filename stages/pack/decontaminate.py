"""Finds training documents that share a word n-gram with evaluation files, as GPT-3's authors did (13 words).

Words are those of stages/shingles.py: letters and digits in lower case, so neither punctuation nor line
ends hide a copy. One n-gram in common is enough: thirteen words in a row are hardly ever chance, and a
question that a model has read with its answer measures memory. Example with n = 3 and the evaluation
text `What is the capital of Peru?`: a document with "..is, The capital.." goes.

An evaluation text of fewer than n words has no n-gram and finds nothing; how many are so short is said.
Memory grows with the evaluation text (16 bytes a word), not with the training text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.entry import Job, file_sha256
from stages.errors import BadInput
from stages.pack.kept import Part
from stages.pack.params import EvaluationFile
from stages.progress import say
from stages.shingles import NORMALISATION, shingle_hashes, words_of
from stages.sources import KINDS, SourceFile, read_file
from stages.tasks import Task, results

CONTAMINATED = pa.schema([("id", pa.string()), ("file", pa.string()), ("ngrams", pa.int64()), ("first", pa.string())])
"""The document, the evaluation file, how many of its n-grams are there, and the first of them in words."""


class Index(NamedTuple):
    """The distinct n-grams of all evaluation files, sorted, and the first file that holds each."""

    hashes: npt.NDArray[np.uint64]
    files: npt.NDArray[np.uint16]


def find_contaminated(
    job: Job, parts: Sequence[Part], evaluation: Sequence[EvaluationFile], ngram: int, work: Path
) -> Iterator[pa.Table]:
    """The training documents that share an n-gram, a table a part.

    Raises:
        BadInput: an evaluation file is not there, is not the one that its sha256 names, or cannot be read.
    """
    if not evaluation:
        return
    for file in evaluation:
        check(job.root, file)
    index = index_of(job.root, evaluation, ngram)
    work.mkdir(parents=True)
    for name, values in index._asdict().items():
        np.save(work / f"{name}.npy", values)
    seen = [NORMALISATION, ngram, [[file.sha256, file.column, file.path] for file in evaluation]]
    tasks = [Task(job.key("contaminated", part.digest, part.kept.hex(), seen), part) for part in parts]
    write = partial(write_contaminated, work=work, names=[file.path for file in evaluation], ngram=ngram)
    for folder in results(job, "contaminated", write, tasks):
        yield pq.read_table(folder / "contaminated.parquet")


def check(root: Path, file: EvaluationFile) -> None:
    """Refuses a file that is not the one that params.yaml names."""
    path, place = root / file.path, f"params.yaml: pack.decontaminate: {file.path}"
    if not path.is_file():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise BadInput(
            f"{place}: not there" + (f"; did you mean {near[0]}?" if near else "; name a file below this folder")
        )
    if SourceFile(path, path.name).kind is None:
        raise BadInput(f"{place}: of no kind that can be read; there are {', '.join(KINDS)}")
    found = file_sha256(path)
    if found != file.sha256:
        raise BadInput(
            f"{place}: its sha256 is {found}, not {file.sha256 or 'given'}; if this is the right file, paste it"
        )


def index_of(root: Path, evaluation: Sequence[EvaluationFile], ngram: int) -> Index:
    """The n-grams of the files."""
    parts = []
    for number, file in enumerate(evaluation):
        n_texts = n_short = 0
        distinct = np.zeros(0, np.uint64)
        waiting: list[npt.NDArray[np.uint64]] = []
        for document in read_file(SourceFile(root / file.path, file.path), file.column):
            own = ngrams_of(document.text, ngram)
            n_texts, n_short = n_texts + 1, n_short + (not len(own))
            waiting.append(own)
            if len(waiting) == 10_000:
                distinct, waiting = np.unique(np.concatenate([distinct, *waiting])), []
        distinct = np.unique(np.concatenate([distinct, *waiting]))
        short = f"; {n_short:,} are shorter than {ngram} words and find nothing" if n_short else ""
        say(f"pack: {file.path}: {len(distinct):,} {ngram}-grams of {n_texts:,} texts{short}")
        parts.append((distinct, np.full(len(distinct), number, np.uint16)))
    hashes, first = np.unique(np.concatenate([part[0] for part in parts]), return_index=True)
    return Index(hashes, np.concatenate([part[1] for part in parts])[first])


def ngrams_of(text: str, ngram: int) -> npt.NDArray[np.uint64]:
    """The hash of each n-gram of a text in its order; none if it is shorter."""
    words = words_of(text)
    return shingle_hashes(words, ngram) if len(words) >= ngram else np.zeros(0, np.uint64)


def write_contaminated(part: Part, folder: Path, work: Path, names: list[str], ngram: int) -> None:
    """Writes contaminated.parquet: the training documents of the part that share an n-gram."""
    index = Index(*(np.load(work / f"{name}.npy", mmap_mode="r") for name in Index._fields))
    rows = []
    for batch in part.batches(["id", "text", "split"]):
        train = batch.filter(pc.equal(batch["split"], "train"))
        for name, text in zip(train["id"].to_pylist(), train["text"].to_pylist(), strict=True):
            rows += [{"id": name, **shared} for shared in shared_ngrams(text, index, names, ngram)]
    pq.write_table(pa.Table.from_pylist(rows, CONTAMINATED), folder / "contaminated.parquet")


def shared_ngrams(text: str, index: Index, names: list[str], ngram: int) -> list[dict]:
    """For a contaminated text, the file with the first shared n-gram, their number, and the first in words."""
    if not len(index.hashes):
        return []
    own = ngrams_of(text, ngram)
    places = np.minimum(np.searchsorted(index.hashes, own), len(index.hashes) - 1)
    shared = np.flatnonzero(index.hashes[places] == own)
    if not len(shared):
        return []
    first = int(shared[0])
    words = words_of(text)[first : first + ngram]
    return [{"file": names[int(index.files[places[first]])], "ngrams": len(shared), "first": " ".join(words)}]
