"""Which bytes each token stands for, so that losses per token become losses per byte.

A byte-level tokenizer writes every byte as one printable character (GPT-2's table: a space is "Ġ",
a newline "Ċ"), so a token is a string of such characters, and the bytes of a text are those of its
tokens side by side, without loss. Example: "Ġthe" is the four bytes " the".

End-of-text stands for the symbol 256, the end of a document, which is no byte of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import BadInput
from stages.vocabulary import byte_characters, load_tokenizer, roles_of

END_OF_DOCUMENT = 256  # the byte symbols are 0 to 255


class TokenBytes:
    """The byte symbols of every token of a tokenizer.json.

    Attributes:
        end_of_text: the id of the token between documents.
        lengths: the number of symbols of each token, int64 [V]; 1 for end-of-text, 0 for other special tokens.

    Raises:
        BadInput: a tokenizer that is not byte-level, so that its tokens have no bytes.
    """

    def __init__(self, path: Path):
        self.tokenizer = load_tokenizer(path)
        if type(self.tokenizer.decoder).__name__ != "ByteLevel":
            raise BadInput(f"{path}: not a byte-level tokenizer; run `dvc repro tokenizer`")
        end_of_text = self.tokenizer.token_to_id(roles_of(path).end_of_text)
        assert end_of_text is not None, "load_tokenizer has looked"
        self.end_of_text: int = end_of_text
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        special = set(self.tokenizer.get_added_tokens_decoder())
        symbols: list[list[int]] = [[] for _ in range(self.tokenizer.get_vocab_size())]
        for token, token_id in self.tokenizer.get_vocab().items():
            if token_id not in special:
                symbols[token_id] = [byte_of[character] for character in token]
        symbols[self.end_of_text] = [END_OF_DOCUMENT]
        self.lengths = np.array([len(s) for s in symbols], np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._symbols = np.array([symbol for s in symbols for symbol in s], np.int64)

    def expand(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """The symbols of the tokens side by side: bytes, and 256 for end-of-text."""
        lengths = self.lengths[tokens]
        ends = np.cumsum(lengths)
        place = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
        return self._symbols[np.repeat(self._starts[tokens], lengths) + place]

    def text_bytes(self, tokens: NDArray[np.int64]) -> bytes:
        """The UTF-8 bytes of a document, without its end."""
        symbols = self.expand(tokens)
        return symbols[symbols != END_OF_DOCUMENT].astype(np.uint8).tobytes()

    def n_bytes(self, tokens: NDArray[np.int64]) -> int:
        """The number of bytes of the text of these tokens."""
        return int(self.lengths[tokens].sum() - (tokens == self.end_of_text).sum())
