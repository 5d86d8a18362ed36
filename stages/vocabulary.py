"""Special tokens, and the tokenizer as the stages after it open it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, "<|im_start|>", "<|im_end|>")


def load_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json` that takes special strings in text for ordinary text, and encodes all of a text.

    Raises:
        BadInput: the file cannot be read, has no end-of-text token, or has gaps in its ids.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise BadInput(f"{path}: not a tokenizer.json ({error}); run `dvc repro tokenizer`") from None
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise BadInput(f"{path}: has no token {END_OF_TEXT}, which separates documents")
    vocab_size, largest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise BadInput(f"{path}: id {largest} in a vocabulary of {vocab_size}; ids must be 0, 1, 2.. without gaps")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def byte_characters() -> list[str]:
    """The character that stands for each byte 0..255 in a byte-level vocabulary, as in GPT-2's encoder.

    Printable bytes stand for themselves; the others take the characters from 256 on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
