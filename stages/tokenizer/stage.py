"""Makes data/tokenizer/tokenizer.json: trained on the kept training documents, or taken from a file.

Text is first split as GPT-4 does: a word takes the space before it, digits come in groups of at most
three, runs of spaces and line ends stay together. Distinct pieces are counted, shard by shard
(count.py), and merged by frequency (learn.py); ties go to the smaller ids, so equal text gives equal
merges in any order and on any number of cores. What comes out is what Hugging Face's trainer would
give, in the standard file that its `tokenizers` load.

A report says what the vocabulary is worth on a sample of the text (report.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.entry import Job
from stages.errors import BadInput
from stages.files import write_json
from stages.first_compile import tell_first_compile
from stages.kept import Part, kept_parts
from stages.pretoken_rules import GPT4, Rule
from stages.progress import progress, say
from stages.tokenizer.given import take_file
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.sample import training_texts
from stages.vocabulary import SPECIAL_TOKENS, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def run(job: Job, tokenizer: TokenizerParams) -> None:
    from stages.tokenizer.report import write_report
    from stages.tokenizer.sample import read_sample

    shards = kept_parts(job.root / "data/clean/documents", job.root / "data/dedup/keep.parquet")
    path = job.staging / "tokenizer.json"
    sample = read_sample(shards)
    if not sample.texts:
        raise BadInput("data/dedup/keep.parquet keeps no training document; loosen clean or dedup in params.yaml")
    if tokenizer.file:
        take_file(tokenizer, job.root, path)
    else:
        made = trained(job, shards, tokenizer)
        path.write_text(made.to_str(pretty=True), encoding="utf-8")
        warn_of(made.get_vocab_size(), tokenizer)
    metrics = write_report(job.staging, load_tokenizer(path), sample, tokenizer.compare, job.root)
    write_json(job.staging / "metrics.json", metrics)


def warn_of(size: int, params: TokenizerParams) -> None:
    """Says so where the text has too little to fill the vocabulary."""
    if size < params.vocab_size:
        what = "characters" if params.type == "character" else "pairs"
        say(
            f"tokenizer: warning: {size:,} tokens where tokenizer.vocab_size asks for {params.vocab_size:,}: the text "
            f"has no more {what} that occur {params.min_frequency} times (tokenizer.min_frequency); take more text, or "
            "a smaller vocabulary"
        )


def trained(job: Job, shards: Sequence[Part], params: TokenizerParams) -> Tokenizer:
    """A tokenizer of the kept training documents."""
    from stages.tokenizer import character, train
    from stages.tokenizer.count import count_words

    tell_first_compile(job.stage, Path(__file__).parent)
    special = [*SPECIAL_TOKENS, *params.extra_special_tokens]
    sizes = (special, params.vocab_size, params.min_frequency)
    if params.type == "character":
        return character.character_tokenizer(count_words(job, shards, character.RULE), *sizes)
    rule = Rule(GPT4, params.max_digits)
    if params.engine == "hf":
        return train.by_huggingface(all_texts(shards), rule, *sizes)
    return train.from_counts(count_words(job, shards, rule), rule, *sizes)


def all_texts(shards: Sequence[Part]) -> Iterator[str]:
    with progress("tokenizer: text read", None, "characters", scale=True) as bar:
        for shard in shards:
            for table in training_texts(shard, ["text"]):
                for text in table["text"].to_pylist():
                    bar.update(len(text))
                    yield text
