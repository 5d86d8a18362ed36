"""Special tokens, and the tokenizer as the stages after it open it.

Ours separates documents by <|endoftext|> and fills rows with <|pad|>. A tokenizer from elsewhere may do so
by other tokens; the stage `tokenizer` then notes their roles in tokenizer.json, beside the token, where
Hugging Face tokenizers pass over them:

    "added_tokens": [{"id": 2, "content": "</s>", "special": true, .., "roles": ["end_of_text", "padding"]}, ..]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
ROLES = "roles"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, "<|im_start|>", "<|im_end|>")


class Roles(NamedTuple):
    """Which token stands between documents, and which fills rows."""

    end_of_text: str
    padding: str


def roles_of(path: Path) -> Roles:
    """The tokens of a tokenizer.json that have a role.

    Raises:
        BadInput: the file cannot be read, or no token ends a text.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        added, vocabulary = described["added_tokens"], described["model"]["vocab"]
        names = {role: token["content"] for token in added for role in token.get(ROLES, [])}
        present = {token["content"] for token in added} | (vocabulary.keys() if isinstance(vocabulary, dict) else set())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a tokenizer.json ({error}); run `dvc repro tokenizer`") from None
    end_of_text = names.get("end_of_text", END_OF_TEXT)
    if end_of_text not in present:
        raise BadInput(f"{path}: has no token {end_of_text}, which separates documents")
    return Roles(end_of_text, names.get("padding", PADDING if PADDING in present else end_of_text))


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
    roles_of(path)
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
