"""The section `pack`: how documents become rows of tokens."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.params import Section

SHA256 = re.compile(r"[0-9a-f]{64}")


class EvaluationFile(Section):
    """A file whose text must not be in train: named with its sha256, since DVC does not watch it."""

    path: str
    sha256: str = ""
    column: str = "text"

    @field_validator("sha256")
    @classmethod
    def _is_sha256(cls, value: str) -> str:
        if value and not SHA256.fullmatch(value):
            raise ValueError("must be the 64 digits that `sha256sum FILE` prints; leave it empty to be told them")
        return value


class PackParams(Section):
    context_length: int = Field(default=256, ge=8, le=1 << 20)
    strategy: Literal["best_fit", "concat"] = "best_fit"
    shard_tokens: int = Field(default=1 << 25, ge=1 << 10)
    mixture: dict[str, Annotated[float, Field(ge=0, le=1000)]] = {}
    decontaminate: list[EvaluationFile] = []
    decontaminate_ngram: int = Field(default=13, ge=1)

    def unknown_source(self, known: Collection[str]) -> str | None:
        """The first source of the mixture that is not among those that are there, with the nearest of these."""
        for name in self.mixture:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                return f"{name!r}; {hint}There are {', '.join(sorted(known)[:20])}{', ..' if len(known) > 20 else ''}"
        return None
