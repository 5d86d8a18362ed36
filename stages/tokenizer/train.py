"""Trains byte-level BPE on counted words, by our merge loop or by Hugging Face's trainer: equal merges.

Special tokens take the first ids, then the 256 bytes, then merges by frequency, so no text is ever unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stages.pretoken_rules import Rule, pre_tokenizer
from stages.tokenizer.words import Counted
from stages.vocabulary import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model


def from_counts(counted: Counted, rule: Rule, special: list[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """A tokenizer with the merges of these words."""
    from tokenizers import models

    from stages.tokenizer.learn import learn

    merges = learn(*counted, n_special=len(special), vocab_size=vocab_size, min_frequency=min_frequency)
    character = byte_characters()
    tokens = [*special, *("".join(map(character.__getitem__, token)) for token in merges.tokens)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(tokens[left], tokens[right]) for left, right in merges.pairs]
    return around(models.BPE(vocabulary, pairs), rule, special)


def by_huggingface(
    texts: Iterable[str], rule: Rule, special: list[str], vocab_size: int, min_frequency: int
) -> Tokenizer:
    """The same by the trainer of Hugging Face tokenizers, which counts in 32 bits and holds all words in memory."""
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    tokenizer = around(models.BPE(), rule, [])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def around(model: Model, rule: Rule, special: list[str]) -> Tokenizer:
    """A byte-level tokenizer with this model."""
    from tokenizers import Tokenizer, decoders

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer
