"""A vocabulary of characters: every character that is frequent enough is one token, any other its bytes.

It is byte-level BPE like ours, with characters as pre-tokens and without merges: `ignore_merges` looks
a whole pre-token up in the vocabulary. So every text comes back, and what reads our tokenizers reads
this one too. Example with é in the text and ж not: "aéж" becomes the tokens of a, of é, and of two bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.pretoken_rules import CHARACTERS, Rule
from stages.tokenizer.train import around
from stages.tokenizer.words import Counted
from stages.vocabulary import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RULE = Rule(CHARACTERS, 0)


def character_tokenizer(counted: Counted, special: list[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Special tokens, the 256 bytes, and the most frequent characters of more than one byte, ties by code point."""
    from tokenizers import models

    symbols = byte_characters()
    long = np.flatnonzero((np.diff(counted.offsets) > 1) & (counted.counts >= min_frequency))
    characters = [
        (counted.data[counted.offsets[n] : counted.offsets[n + 1]].tobytes(), counted.counts[n]) for n in long
    ]
    characters.sort(key=lambda item: (-item[1], item[0]))
    tokens = [*special, *sorted(symbols)]
    tokens += ["".join(map(symbols.__getitem__, data)) for data, _ in characters[: vocab_size - len(tokens)]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return around(models.BPE(vocabulary, [], ignore_merges=True), RULE, special)
