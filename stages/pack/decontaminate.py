"""Finds training documents that share a word n-gram with evaluation files, as GPT-3's authors did (13 words).

Words are those of stages/shingles.py, in lower case, so neither punctuation nor line ends hide a copy.
One n-gram in common is enough: thirteen words in a row are hardly ever chance, and a question that a
model has read with its answer measures memory. Example with n = 3 and the evaluation text `What is the
capital of Peru?`: a document with "..is, The capital.." goes.

An evaluation text of fewer than n words has no n-gram and finds nothing; how many are so short is said.
Memory grows with the evaluation text (10 bytes a word), not with the training text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256
from stages.kept import Part
from stages.pack.encode import by_bytes
from stages.pack.params import EvaluationFile
from stages.progress import say
from stages.shingles import Shingled, normalisation_name, shingle_texts
from stages.sources import KINDS, SourceFile, read_file
from stages.store import save_array
from stages.tasks import Task, results
from stages.utf8 import text_buffers
from stages.wording import counted

CONTAMINATED = pa.schema([("id", pa.string()), ("file", pa.string()), ("ngrams", pa.int64()), ("first", pa.string())])
"""The document, the evaluation file, how many of its n-grams are there, and the first of them in words."""


SIEVE_SIZE = 1 << 24
BATCH_TEXTS = 1000


class Index(NamedTuple):
    """The distinct n-grams of all evaluation files, sorted, and the first file that holds each.

    `sieve` says whether any n-gram has these low bits: nearly all of the training text ends there.
    """

    hashes: npt.NDArray[np.uint64]
    files: npt.NDArray[np.uint16]
    sieve: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, found: Sequence[npt.NDArray[np.uint64]]) -> Index:
        """The n-grams of each file."""
        numbers = [np.full(len(own), number, np.uint16) for number, own in enumerate(found)]
        hashes, first = np.unique(np.concatenate(found), return_index=True)
        sieve = np.zeros(SIEVE_SIZE, np.bool_)
        sieve[_low_bits(hashes)] = True
        return cls(hashes, np.concatenate(numbers)[first], sieve)


def _low_bits(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    return (hashes & np.uint64(SIEVE_SIZE - 1)).astype(np.intp)


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
        save_array(work / f"{name}.npy", values)
    seen = [normalisation_name(), ngram, [[file.sha256, file.column, file.path] for file in evaluation]]
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
    found = []
    for file in evaluation:
        texts = (document.text for document in read_file(SourceFile(root / file.path, file.path), file.column))
        n_texts = n_short = 0
        distinct = np.zeros(0, np.uint64)
        while some := list(islice(texts, BATCH_TEXTS)):
            grams, ends, _ = ngrams_of(pa.array(some, pa.large_string()), ngram)
            n_texts, n_short = n_texts + len(some), n_short + int((np.diff(ends) == 0).sum())
            distinct = np.unique(np.concatenate([distinct, grams]))
        short = f"; {n_short:,} of less than {counted(ngram, 'word')} can find nothing" if n_short else ""
        say(f"pack: {file.path}: {len(distinct):,} {ngram}-grams of {counted(n_texts, 'text')}{short}")
        found.append(distinct)
    return Index.of(found)


def ngrams_of(texts: pa.Array, ngram: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], Shingled]:
    """The n-grams of texts end to end, where those of each begin and end, and the texts as words.

    A text of fewer than n words, which stages/shingles.py takes for one shingle, has none here.
    """
    shingled = shingle_texts(*text_buffers(texts), ngram)
    counts = np.diff(shingled.ends)
    for text in np.flatnonzero(counts == 1).tolist():
        counts[text] = len(_words(shingled, text)) >= ngram
    is_ngram = np.repeat(counts > 0, np.diff(shingled.ends))
    return shingled.shingles[is_ngram], np.concatenate([[0], np.cumsum(counts)]), shingled


def _words(shingled: Shingled, text: int) -> list[str]:
    begin, end = shingled.normal_ends[text : text + 2]
    return shingled.normal[begin:end].tobytes().decode().split(" ")


def write_contaminated(part: Part, folder: Path, work: Path, names: list[str], ngram: int) -> None:
    """Writes contaminated.parquet: the training documents of the part that share an n-gram."""
    index = Index(*(np.load(work / f"{name}.npy", mmap_mode="r") for name in Index._fields))
    rows: list[dict[str, Any]] = []
    for batch in part.batches(["id", "text", "split"]):
        for piece in by_bytes(batch.filter(pc.equal(batch["split"], "train"))):
            for text, shared in shared_ngrams(piece["text"], index, names, ngram):
                rows.append({"id": piece["id"][text].as_py(), **shared})
    pq.write_table(pa.Table.from_pylist(rows, CONTAMINATED), folder / "contaminated.parquet")


def shared_ngrams(texts: pa.Array, index: Index, names: list[str], ngram: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each contaminated text the file with its first shared n-gram, their number, and the first in words."""
    grams, ends, shingled = ngrams_of(texts, ngram)
    likely = np.flatnonzero(index.sieve[_low_bits(grams)])
    places = np.minimum(np.searchsorted(index.hashes, grams[likely]), max(len(index.hashes) - 1, 0))
    found = likely[index.hashes[places] == grams[likely]] if len(likely) else likely
    owners = np.searchsorted(ends, found, side="right") - 1
    for text in np.unique(owners).tolist():
        own = found[owners == text]
        first = int(own[0] - ends[text])
        file = names[int(index.files[np.searchsorted(index.hashes, grams[own[0]])])]
        yield text, {"file": file, "ngrams": len(own), "first": " ".join(_words(shingled, text)[first : first + ngram])}
