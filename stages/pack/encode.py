"""Encodes the kept documents, each split into one flat file of tokens: documents end to end.

A document of tokens t1 .. tn takes n + 1 places: end-of-text, which is its first input, and t1 .. tn.
The file is memory-mapped for packing, so memory does not grow with the corpus. Special strings in the
text are ordinary text.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stages.documents import kept_shards
from stages.progress import progress
from stages.splits import SPLITS
from stages.vocabulary import END_OF_TEXT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_DOCUMENTS = 256


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


def encode_splits(root: Path, folder: Path, tokenizer: Tokenizer) -> dict[str, EncodedSplit]:
    """Encodes all kept documents into `folder`, in the order of the clean shards."""
    dtype = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)
    start = np.array([tokenizer.token_to_id(END_OF_TEXT)], dtype)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, IO[bytes]] = {split: (folder / f"{split}.tokens").open("wb") for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    hashes = {split: hashlib.sha256() for split in SPLITS}
    with progress("pack: encoded", None, "documents") as bar:
        for table in kept_shards(root / "data/clean/documents", root / "data/dedup/keep.parquet", ["text", "split"]):
            for batch in table.to_batches(max_chunksize=BATCH_DOCUMENTS):
                texts, splits = batch.column("text").to_pylist(), batch.column("split").to_pylist()
                for text, split, encoding in zip(texts, splits, tokenizer.encode_batch_fast(texts), strict=True):
                    ids = np.concatenate([start, np.asarray(encoding.ids, dtype)])
                    files[split].write(ids.tobytes())
                    lengths[split].append(len(ids))
                    hashes[split].update(hashlib.sha256(text.encode()).digest())
                bar.update(len(texts))
    for file in files.values():
        file.close()
    return {
        split: EncodedSplit(
            folder / f"{split}.tokens", dtype, np.asarray(lengths[split], np.int64), hashes[split].hexdigest()
        )
        for split in SPLITS
    }
