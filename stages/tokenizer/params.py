"""The section `tokenizer`: which kind, how large the vocabulary is and what it reserves, or which file to take."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from stages.params import Section
from stages.vocabulary import SPECIAL_TOKENS

N_BYTES = 256
# The split pattern cuts between a letter or digit and a bracket, so no merge of text makes such a string.
BRACKETED = re.compile(r"[<\[].*[A-Za-z0-9].*[>\]]", re.DOTALL)

LEARNABLE = (
    "could also be learned from text, which could then write it; put letters or digits in angle or square brackets, "
    "such as <|tool|> or [MASK]"
)


class TokenizerParams(Section):
    type: Literal["bpe", "character"] = "bpe"
    engine: Literal["millrace", "hf"] = "millrace"
    vocab_size: int = Field(default=4096, le=1 << 20)
    min_frequency: int = Field(default=2, ge=1, le=1 << 31)
    max_digits: int = Field(default=3, ge=1, le=100)
    extra_special_tokens: list[str] = Field(default=[])
    file: str = ""
    file_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    end_of_text: str = ""
    padding: str = ""
    compare: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _holds_every_byte(self) -> TokenizerParams:
        if len(set(self.extra_special_tokens)) != len(self.extra_special_tokens):
            raise ValueError("extra_special_tokens names a token twice")
        for token in self.extra_special_tokens:
            if not BRACKETED.fullmatch(token):
                raise ValueError(f"extra_special_tokens: {token!r} {LEARNABLE}")
        taken = sorted(set(self.extra_special_tokens) & set(SPECIAL_TOKENS))
        if taken:
            raise ValueError(f"extra_special_tokens repeats {', '.join(taken)}, which every tokenizer has")
        least = N_BYTES + len(SPECIAL_TOKENS) + len(self.extra_special_tokens)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is below {least}: every byte and special token has an id")
        return self

    @model_validator(mode="after")
    def _names_a_file_with_its_hash(self) -> TokenizerParams:
        if self.file and not self.file_sha256:
            raise ValueError(f"file_sha256 must be the sha256 of {self.file}, so that another file there is noticed")
        for name in ("file_sha256", "end_of_text", "padding"):
            if getattr(self, name) and not self.file:
                raise ValueError(f"{name} is read for tokenizer.file alone, which is empty")
        if self.file and self.extra_special_tokens:
            raise ValueError(
                "extra_special_tokens are of a trained tokenizer; `millrace tokenizer migrate` adds to a file"
            )
        if self.type == "character" and self.engine != "millrace":
            raise ValueError("engine hf trains type bpe alone")
        return self
