"""Encodes the kept documents of each clean shard into flat files of tokens, one a split.

A document of tokens t1 .. tn takes n + 1 slots: end-of-text, which is its first input, and t1 .. tn.
Documents stand end to end in the order of the shard, and shards in the order of their names, so a
split is one long sequence of slots over several files. Special strings in the text are ordinary text.

    00000.parquet: "a b" (train), "c" (test)   ->   train.tokens  E a b     train.parquet  id source tokens=3 bytes=3
                                                    test.tokens   E c       test.parquet   id source tokens=2 bytes=1

A shard is encoded once for a tokenizer and stays in scratch (stages/tasks.py): a shard that changes is
encoded again, the others are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.encoding import Encoder
from stages.entry import Job
from stages.kept import Part
from stages.splits import SPLITS, Split
from stages.tasks import Task, results
from stages.utf8 import text_buffers
from stages.vocabulary import load_tokenizer, roles_of

BATCH_BYTES = 1 << 20
DOCUMENTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("tokens", pa.int64()), ("bytes", pa.int64())])
Ids = npt.NDArray[np.uint32]


class TokenizerFile(NamedTuple):
    """Names a tokenizer for the workers, by content too; `dtype` holds its ids."""

    path: Path
    sha256: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class EncodedParts:
    """What encoding left in scratch.

    Attributes:
        folders: one a part, in the order of the parts.
        digest: names all of it.
    """

    folders: Sequence[Path]
    dtype: np.dtype
    digest: str

    def token_files(self, split: Split) -> list[Path]:
        return [folder / f"{split}.tokens" for folder in self.folders]

    def documents(self, split: Split, columns: list[str]) -> Iterator[pa.Table]:
        """The table of each part's documents, in their order."""
        for folder in self.folders:
            yield pq.read_table(folder / f"{split}.parquet", columns=columns)

    def lengths(self, split: Split) -> npt.NDArray[np.integer]:
        """The slots of each document of a split."""
        tables = self.documents(split, ["tokens"])
        lengths = [table["tokens"].to_numpy().astype(np.int32) for table in tables]
        return np.concatenate([*lengths, np.zeros(0, np.int32)])

    def text_sha256(self) -> str:
        """A hash over the hashes of the test documents' texts, in their order."""
        digest = hashlib.sha256()
        for folder in self.folders:
            digest.update((folder / "test.sha256").read_bytes())
        return digest.hexdigest()


def encode_parts(job: Job, parts: Sequence[Part], tokenizer: TokenizerFile) -> EncodedParts:
    """Encodes what has not been encoded yet, in worker processes."""
    tasks = [Task(job.key("encoded", part.digest, part.kept.hex(), tokenizer.sha256), part) for part in parts]
    folders = list(results(job, "encoded", functools.partial(encode_part, tokenizer=tokenizer), tasks))
    digest = hashlib.sha256("\n".join(task.key for task in tasks).encode()).hexdigest()
    return EncodedParts(folders, tokenizer.dtype, digest)


def encode_part(part: Part, folder: Path, tokenizer: TokenizerFile) -> None:
    """Writes SPLIT.tokens and SPLIT.parquet of each split, and test.sha256."""
    encoder = _encoder(tokenizer)
    start = encoder.tokenizer.token_to_id(roles_of(tokenizer.path).end_of_text)
    assert start is not None, "roles_of has looked"
    with contextlib.ExitStack() as stack:
        tokens = {split: stack.enter_context((folder / f"{split}.tokens").open("wb")) for split in SPLITS}
        tables = {
            split: stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", DOCUMENTS)) for split in SPLITS
        }
        hashes = stack.enter_context((folder / "test.sha256").open("wb"))
        for batch in part.batches(["id", "text", "source", "split"]):
            for split in SPLITS:
                for piece in by_bytes(batch.filter(pc.equal(batch["split"], split))):
                    data, offsets = text_buffers(piece["text"])
                    flat, lengths = with_starts(*encoder.encode_buffers(data, offsets), start, tokenizer.dtype)
                    tokens[split].write(flat.data)
                    columns = [piece["id"], piece["source"], pa.array(lengths), pa.array(np.diff(offsets))]
                    tables[split].write_batch(pa.record_batch(columns, schema=DOCUMENTS))
                    if split == "test":
                        texts = piece["text"].to_pylist()
                        hashes.write(b"".join(hashlib.sha256(text.encode()).digest() for text in texts))


def by_bytes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows in groups of about a megabyte of text."""
    _, offsets = text_buffers(batch["text"])
    first = 0
    while first < batch.num_rows:
        last = int(np.searchsorted(offsets, offsets[first] + BATCH_BYTES))
        last = min(max(last, first + 1), batch.num_rows)
        yield batch.slice(first, last - first)
        first = last


def with_starts(
    ids: Ids, offsets: npt.NDArray[np.int64], start: int, dtype: np.dtype
) -> tuple[npt.NDArray, npt.NDArray[np.int64]]:
    """The slots of documents with these ids, end-of-text first in each, and their number."""
    n_documents = len(offsets) - 1
    first = offsets[:-1] + np.arange(n_documents)
    flat = np.empty(len(ids) + n_documents, dtype)
    is_id = np.ones(len(flat), np.bool_)
    is_id[first] = False
    flat[first] = start
    flat[is_id] = ids
    return flat, np.diff(offsets) + 1


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: TokenizerFile) -> Encoder:
    """One for all shards of a process: its table grows as it encodes."""
    return Encoder(load_tokenizer(tokenizer.path))
