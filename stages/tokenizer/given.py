"""Takes a tokenizer.json from elsewhere instead of training one, if it does what the stages after it need.

Losses become bits per byte, so every token must stand for bytes, side by side those of the text: that
is what byte-level tokenizers do (GPT-2's, Llama 3's, Qwen's and many more). And a special token must
separate documents. The file is taken as it is; only where its tokens for the end of a text and for
padding have other names than ours, their roles are noted in it (stages/vocabulary.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.errors import BadInput
from stages.files import file_sha256
from stages.tokenizer.params import TokenizerParams
from stages.vocabulary import END_OF_TEXT, PADDING, ROLES, byte_characters, load_tokenizer


def take_file(params: TokenizerParams, root: Path, target: Path) -> None:
    """Writes the file named in params to `target`.

    Raises:
        BadInput: it is not there, is another file, or lacks something.
    """
    source = root / Path(params.file).expanduser()
    if not source.is_file():
        raise BadInput(f"params.yaml: tokenizer.file: {source} is not there")
    if (found := file_sha256(source)) != params.file_sha256:
        raise BadInput(
            f"params.yaml: tokenizer.file_sha256: {source} has sha256 {found}, not {params.file_sha256}; if it is the "
            "one you mean, set tokenizer.file_sha256 to it"
        )
    try:
        described = json.loads(source.read_bytes())
        added = {token["content"]: token for token in described["added_tokens"]}
    except (ValueError, LookupError, TypeError) as error:
        raise BadInput(f"params.yaml: tokenizer.file: {source} is no tokenizer.json ({error})") from None
    end_of_text = params.end_of_text or END_OF_TEXT
    padding = params.padding or (PADDING if PADDING in added else end_of_text)
    for name, key in ((end_of_text, "end_of_text"), (padding, "padding")):
        if not added.get(name, {}).get("special"):
            special = ", ".join(token for token in added if added[token].get("special")) or "none"
            raise BadInput(
                f"params.yaml: tokenizer.{key}: {source} has no special token {name!r}; name one of its own: {special}"
            )
    refuse_other_kinds(described, source)
    if (end_of_text, padding) == (END_OF_TEXT, PADDING):
        target.write_bytes(source.read_bytes())
    else:
        for token in added.values():
            token.pop(ROLES, None)
        added[end_of_text][ROLES] = ["end_of_text"]
        added[padding][ROLES] = [*added[padding].get(ROLES, []), "padding"]
        target.write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
    load_tokenizer(target)


def refuse_other_kinds(described: dict[str, Any], source: Path) -> None:
    """Only byte-level tokenizers, in which every byte has an id.

    Raises:
        BadInput: it is another.
    """
    if (described.get("decoder") or {}).get("type") != "ByteLevel":
        raise BadInput(
            f"params.yaml: tokenizer.file: {source} is not byte-level (its decoder is not ByteLevel), so its tokens "
            "have no bytes to count bits per byte by"
        )
    vocabulary = described["model"].get("vocab", {})
    if isinstance(vocabulary, list) or not all(character in vocabulary for character in byte_characters()):
        raise BadInput(f"params.yaml: tokenizer.file: {source} lacks a token for some byte, so texts could be lost")
