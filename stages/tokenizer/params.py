"""The section `tokenizer`: how large the vocabulary is and what it reserves."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.params import Section
from stages.vocabulary import SPECIAL_TOKENS

N_BYTES = 256


class TokenizerParams(Section):
    vocab_size: int = Field(default=4096, le=1 << 20)
    min_frequency: int = Field(default=2, ge=1)
    max_digits: int = Field(default=3, ge=1)
    extra_special_tokens: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _holds_every_byte(self) -> TokenizerParams:
        if len(set(self.extra_special_tokens)) != len(self.extra_special_tokens):
            raise ValueError("extra_special_tokens names a token twice")
        taken = sorted(set(self.extra_special_tokens) & set(SPECIAL_TOKENS))
        if taken or "" in self.extra_special_tokens:
            raise ValueError(f"extra_special_tokens must not be empty or repeat {', '.join(taken or SPECIAL_TOKENS)}")
        least = N_BYTES + len(SPECIAL_TOKENS) + len(self.extra_special_tokens)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size {self.vocab_size} is below {least}: every byte and special token has an id")
        return self
