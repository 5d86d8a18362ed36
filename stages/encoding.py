"""Encodes much text: each distinct piece of it once, by Hugging Face tokenizers, then by table.

Language repeats itself: the 24 MB of the default corpus are 5.8 million pieces, 100 thousand distinct
ones. A text is cut into pieces only where our split pattern cuts too, whatever stands around, so the
ids of the pieces side by side are the ids of the text. In ASCII a piece is what the pattern matches,
with digits left together. Example: "don't panic: 12345 cafés are" gives `don`, `'t`, ` panic`, `:`,
` `, `12345`, ` cafés`, ` are`.

What is near a non-ASCII character is cut only where a printable ASCII character stands before a
space, because what is a letter or a space depends on the version of Unicode, and `re` and `tokenizers`
may differ in it. A tokenizer with another pattern, normaliser or model is left to encode by itself.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

Ids = npt.NDArray[np.uint32]

# Contractions; words with one leading non-letter; digits; punctuation with line ends; white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,MAX_DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# The same for ASCII. A piece that meets another character, also across white space, is the last line's.
PIECE = re.compile(
    r"(?>'(?i:s|t|re|ve|m|ll|d)|[^\r\nA-Za-z0-9\x80-\U0010ffff]?+[A-Za-z]++|[0-9]++"
    r"| ?+[^\sA-Za-z0-9\x80-\U0010ffff]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+)(?!\s*+[\x80-\U0010ffff])"
    r"|(?s:.+?[!-~](?= )|.+)",
    re.ASCII,
)
MAX_IDS = 1 << 22  # in the table, which is forgotten then


def pre_tokenizer(max_digits: int) -> PreTokenizer:
    """Splits text by the pattern, and writes every byte as one printable character."""
    from tokenizers import Regex, pre_tokenizers

    pattern = Regex(SPLIT_PATTERN.replace("MAX_DIGITS", str(max_digits)))
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class Encoder:
    """Encodes batches of texts to the ids of `tokenizer.encode(text, add_special_tokens=False)`."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.by_pieces = cuts_at_pieces(tokenizer)
        self._forget()

    def _forget(self) -> None:
        self.numbers = _Numbers()
        self.starts, self.lengths = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.ids = np.zeros(0, np.uint32)

    def __call__(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, uint32[n]."""
        if not self.by_pieces:
            return self._encode(texts)
        if len(self.ids) > MAX_IDS:
            self._forget()
        pieces = [np.fromiter(map(self.numbers.__getitem__, PIECE.findall(text)), np.int64) for text in texts]
        try:
            self._learn(self.numbers.take_new())
        except BaseException:  # pieces that have a number but no ids would give other pieces' ids to later texts
            self._forget()
            raise
        return [self._gather(numbers) for numbers in pieces]

    def _encode(self, texts: list[str]) -> list[Ids]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]

    def _learn(self, pieces: list[str]) -> None:
        encoded = self._encode(pieces)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        self.starts = np.concatenate([self.starts, len(self.ids) + np.cumsum(lengths) - lengths])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.ids = np.concatenate([self.ids, *encoded])

    def _gather(self, numbers: npt.NDArray[np.int64]) -> Ids:
        lengths = self.lengths[numbers]
        shifts = self.starts[numbers] - (np.cumsum(lengths) - lengths)
        return self.ids[np.repeat(shifts, lengths) + np.arange(lengths.sum())]


class _Numbers(dict[str, int]):
    """Numbers distinct pieces in the order in which they are met."""

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, piece: str) -> int:
        number = self[piece] = len(self)
        self.new.append(piece)
        return number

    def take_new(self) -> list[str]:
        new, self.new = self.new, []
        return new


def cuts_at_pieces(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is one of ours: BPE over our split pattern, with nothing before or around it."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    described = json.loads(tokenizer.to_str())
    max_digits = re.search(r"p\{N\}\{1,(\d+)\}", str(described["pre_tokenizer"]))
    if max_digits is None or described["model"]["type"] != "BPE" or described["model"]["dropout"]:
        return False
    ours = Tokenizer(BPE())
    ours.pre_tokenizer = pre_tokenizer(int(max_digits[1]))
    return (
        described["pre_tokenizer"] == json.loads(ours.to_str())["pre_tokenizer"]
        and described["normalizer"] is described["truncation"] is described["padding"] is None
        and tokenizer.encode_special_tokens
        and all(token["special"] for token in described["added_tokens"])
    )
