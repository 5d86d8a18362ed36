"""Encodes the kept documents, each split into one flat file of tokens: documents end to end.

A document of tokens t1 .. tn takes n + 1 places: end-of-text, which is its first input, and t1 .. tn.
The file is memory-mapped for packing, so memory does not grow with the corpus. Special strings in the
text are ordinary text. Worker processes encode batches; the order of documents is that of the shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.documents import kept_shards
from stages.encoding import Encoder
from stages.progress import progress
from stages.splits import SPLITS, Split
from stages.vocabulary import END_OF_TEXT, load_tokenizer
from stages.workers import batches, ordered_map

BATCH_CHARACTERS = 1 << 20


@dataclasses.dataclass
class EncodedSplit:
    """The flat tokens of one split and the number of slots of each of its documents."""

    path: Path
    dtype: np.dtype
    lengths: np.ndarray
    text_sha256: str

    def tokens(self) -> np.ndarray:
        """All inputs of the split, memory-mapped."""
        if not len(self.lengths):
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")


class TokenizerFile(NamedTuple):
    """Names a tokenizer for the workers, by content too; `dtype` holds its ids."""

    path: Path
    sha256: str
    dtype: np.dtype


class Document(NamedTuple):
    split: Split
    text: str


class Encoded(NamedTuple):
    split: Split
    inputs: np.ndarray
    text_sha256: bytes


def encode_splits(root: Path, folder: Path, tokenizer: TokenizerFile, n_workers: int) -> dict[str, EncodedSplit]:
    """Encodes all kept documents into `folder`, in the order of the clean shards."""
    encode = functools.partial(encode_batch, tokenizer=tokenizer)
    groups = batches(documents(root), lambda document: len(document.text), BATCH_CHARACTERS)
    lengths: dict[Split, list[int]] = {split: [] for split in SPLITS}
    hashes = {split: hashlib.sha256() for split in SPLITS}
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack, progress("pack: encoded", None, "documents") as bar:
        files = {split: stack.enter_context((folder / f"{split}.tokens").open("wb")) for split in SPLITS}
        for batch in ordered_map(encode, groups, n_workers):
            for split, inputs, text_sha256 in batch:
                files[split].write(inputs.data)
                lengths[split].append(len(inputs))
                hashes[split].update(text_sha256)
            bar.update(len(batch))
    return {
        split: EncodedSplit(
            folder / f"{split}.tokens", tokenizer.dtype, np.asarray(lengths[split], np.int64), hashes[split].hexdigest()
        )
        for split in SPLITS
    }


def documents(root: Path) -> Iterator[Document]:
    """The kept documents, in the order of the clean shards."""
    for table in kept_shards(root / "data/clean/documents", root / "data/dedup/keep.parquet", ["text", "split"]):
        for split, text in zip(table["split"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield Document(split, text)


def encode_batch(batch: list[Document], tokenizer: TokenizerFile) -> list[Encoded]:
    """End-of-text and the tokens of each document, and the sha256 of its text."""
    encoder = _encoder(tokenizer)
    start = encoder.tokenizer.token_to_id(END_OF_TEXT)
    ids = encoder([document.text for document in batch])
    return [
        Encoded(split, np.concatenate([[start], own]).astype(tokenizer.dtype), hashlib.sha256(text.encode()).digest())
        for (split, text), own in zip(batch, ids, strict=True)
    ]


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: TokenizerFile) -> Encoder:
    """One for all batches of a process: its table grows as it encodes."""
    return Encoder(load_tokenizer(tokenizer.path))
