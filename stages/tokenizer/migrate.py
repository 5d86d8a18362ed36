"""Adds special tokens to a tokenizer.json and keeps every id: the new tokens follow the largest one.

    4096 tokens, add <|tool|> and <|user|>   ->   4098 tokens: ids 0 to 4095 as before, <|tool|> 4096, <|user|> 4097

Texts keep their ids too, so an old model could read them; but the file is another one, with another
sha256. Shards and checkpoints name the sha256 of the tokenizer they were made with, so they are not
mixed up with the new one unnoticed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from stages.errors import BadInput
from stages.files import file_sha256
from stages.tokenizer.params import BRACKETED, LEARNABLE
from stages.vocabulary import ROLES, load_tokenizer


class Migrated(NamedTuple):
    """What a migration wrote: the file's sha256, and the ids of the tokens that are new."""

    sha256: str
    added: dict[str, int]


def migrate(source: Path, target: Path, new: list[str]) -> Migrated:
    """Writes `source` with more special tokens to `target`.

    Raises:
        BadInput: the source is no tokenizer of ours, the target is there, or a token has an id or could be learned.
    """
    tokenizer = load_tokenizer(source)
    if target.exists():
        raise BadInput(f"{target}: is there already; name another file, or remove it")
    if not new or len(set(new)) != len(new):
        raise BadInput("name each special token to add once, such as '<|tool|>'")
    for token in new:
        if tokenizer.token_to_id(token) is not None:
            raise BadInput(f"{token}: has the id {tokenizer.token_to_id(token)} in {source}")
        if not BRACKETED.fullmatch(token):
            raise BadInput(f"{token!r} {LEARNABLE}")
    described = json.loads(source.read_text(encoding="utf-8"))
    roles = {token["content"]: token[ROLES] for token in described["added_tokens"] if ROLES in token}
    before = tokenizer.get_vocab()
    tokenizer.add_special_tokens(new)
    written = json.loads(tokenizer.to_str())
    for token in written["added_tokens"]:
        if token["content"] in roles:
            token[ROLES] = roles[token["content"]]
    written["truncation"], written["padding"] = described["truncation"], described["padding"]
    beside = target.with_name(f"{target.name}.partial")
    beside.write_text(json.dumps(written, indent=2, ensure_ascii=False), encoding="utf-8")
    after = load_tokenizer(beside).get_vocab()
    assert all(after[token] == number for token, number in before.items()), "a token lost its id"
    beside.replace(target)
    return Migrated(file_sha256(target), {token: after[token] for token in new})
