"""Trains a byte-level BPE tokenizer (Sennrich et al., 2016) on the kept training documents.

Special tokens take the first ids, then the 256 bytes, then merges by frequency, so no text is ever
unknown. Text is first split as GPT-4 does: a word takes the space before it, digits come in groups of
at most three, runs of spaces and line ends stay together. Example: "don't panic: 12345" splits into
`don`, `'t`, ` panic`, `:`, ` `, `123`, `45`.

The trainer counts words and breaks ties by id, so equal text gives equal merges in any order and on
any number of cores. Training and encoding are Hugging Face tokenizers' work; stages/encoding.py has
the split pattern.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.documents import kept_shards
from stages.encoding import Encoder
from stages.pretoken_rules import GPT4, Rule, pre_tokenizer
from stages.entry import Job, write_json
from stages.errors import BadInput
from stages.progress import progress
from stages.tokenizer.params import TokenizerParams
from stages.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE_CHARACTERS = 4_000_000  # about so much text is encoded for the metrics
LONG = 1000
RUN = re.compile(rf"[^\W\d_]{{{LONG}}}|\s{{{LONG}}}|(?:[^\w\s]|_){{{LONG}}}")


def run(job: Job, tokenizer: TokenizerParams) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [*SPECIAL_TOKENS, *tokenizer.extra_special_tokens]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer(Rule(GPT4, tokenizer.max_digits))
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size,
        min_frequency=tokenizer.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    total = 0
    with progress("tokenizer: text read", None, "characters", scale=True) as bar:

        def texts() -> Iterator[str]:
            nonlocal total
            for shard in training_texts(job.root):
                for text in shard.to_pylist():
                    total += len(text)
                    bar.update(len(text))
                    yield from without_long_runs(text)

        bpe.train_from_iterator(texts(), trainer)
    (job.staging / "tokenizer.json").write_text(bpe.to_str(pretty=True), encoding="utf-8")
    bpe.encode_special_tokens = True
    sample = every_nth(job.root, max(1, total // SAMPLE_CHARACTERS))
    write_json(job.staging / "metrics.json", measure(bpe, len(special), sample))


def training_texts(root: Path) -> Iterator[pa.ChunkedArray]:
    """The kept documents of the training split, shard by shard.

    Raises:
        BadInput: there is none.
    """
    empty = True
    for table in kept_shards(root / "data/clean/documents", root / "data/dedup/keep.parquet", ["text", "split"]):
        texts = table.filter(pc.equal(table["split"], "train"))["text"]
        empty = empty and not len(texts)
        yield texts
    if empty:
        raise BadInput("data/dedup/keep.parquet keeps no training document; loosen clean or dedup in params.yaml")


def without_long_runs(text: str) -> Iterator[str]:
    """The text, cut where it has thousands of letters, marks or white space in a row.

    The trainer's time is quadratic in such a run: 110 s for 320,000 times the letter a.
    """
    start = 0
    for place in range(LONG, len(text), LONG):
        if RUN.match(text, place):
            yield text[start:place]
            start = place
    yield text[start:]


def every_nth(root: Path, n: int) -> list[str]:
    """Every n-th training document."""
    texts = itertools.chain.from_iterable(training_texts(root))
    return [text.as_py() for text in itertools.islice(texts, 0, None, n)]


def measure(bpe: Tokenizer, n_special: int, sample: list[str]) -> dict[str, float | int]:
    """Bytes per token and the tokens that do not occur in these texts."""
    used = np.zeros(bpe.get_vocab_size(), np.int64)
    for ids in Encoder(bpe)(sample):
        used += np.bincount(ids, minlength=len(used))
    return {
        "vocab_size": len(used),
        "bytes_per_token": sum(len(text.encode()) for text in sample) / int(used.sum()),
        "unused_tokens": int((used[n_special:] == 0).sum()),
    }
