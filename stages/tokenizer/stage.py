"""Trains a byte-level BPE tokenizer (Sennrich et al., 2016) on the kept training documents.

Special tokens take the first ids, then the 256 bytes, then merges by frequency, so no text is ever
unknown. Text is first split as GPT-4 does: a word takes the space before it, digits come in groups of
at most three, runs of spaces and line ends stay together. Example: "don't panic: 12345" splits into
`don`, `'t`, ` panic`, `:`, ` `, `123`, `45`.

The trainer counts words and breaks ties by id, so equal text gives equal merges in any order and on
any number of cores. Training and encoding are Hugging Face tokenizers' work.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.documents import kept_shards
from stages.entry import Job, write_json
from stages.errors import BadInput
from stages.progress import progress
from stages.tokenizer.params import TokenizerParams
from stages.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Contractions; words with one leading non-letter; digits; punctuation with line ends; white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,MAX_DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SAMPLE_CHARACTERS = 4_000_000


def run(job: Job, tokenizer: TokenizerParams) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [*SPECIAL_TOKENS, *tokenizer.extra_special_tokens]
    bpe = Tokenizer(models.BPE())
    pattern = SPLIT_PATTERN.replace("MAX_DIGITS", str(tokenizer.max_digits))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size,
        min_frequency=tokenizer.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with progress("tokenizer: text read", None, "bytes", scale=True) as bar:

        def texts() -> Iterator[str]:
            for text in training_texts(job.root):
                bar.update(len(text))
                yield text

        bpe.train_from_iterator(texts(), trainer)
    path = job.staging / "tokenizer.json"
    bpe.save(str(path), pretty=True)
    bpe.encode_special_tokens = True
    write_json(job.staging / "metrics.json", measure(job.root, bpe))


def training_texts(root: Path) -> Iterator[str]:
    """The kept documents of the training split.

    Raises:
        BadInput: there is none.
    """
    empty = True
    for table in kept_shards(root / "data/clean/documents", root / "data/dedup/keep.parquet", ["text", "split"]):
        for text, split in zip(table.column("text").to_pylist(), table.column("split").to_pylist(), strict=True):
            if split == "train":
                empty = False
                yield text
    if empty:
        raise BadInput("data/dedup/keep.parquet keeps no training document; loosen clean or dedup in params.yaml")


def measure(root: Path, bpe: Tokenizer) -> dict[str, float | int]:
    """Bytes per token and unused tokens, on a sample: every n-th training document, about 4 MB of text."""
    total = sum(len(text) for text in training_texts(root))
    stride = max(1, total // SAMPLE_CHARACTERS)
    sample = list(itertools.islice(training_texts(root), 0, None, stride))
    used = np.zeros(bpe.get_vocab_size(), np.int64)
    for encoding in bpe.encode_batch_fast(sample):
        np.add.at(used, encoding.ids, 1)
    n_special = len(json.loads(bpe.to_str())["added_tokens"])
    return {
        "vocab_size": len(used),
        "bytes_per_token": sum(len(text.encode()) for text in sample) / int(used.sum()),
        "unused_tokens": int((used[n_special:] == 0).sum()),
    }
