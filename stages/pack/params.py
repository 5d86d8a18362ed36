"""The section `pack`: how documents become rows of tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.params import Section


class PackParams(Section):
    context_length: int = Field(default=256, ge=8, le=1 << 20)
    strategy: Literal["best_fit", "concat"] = "best_fit"
    shard_tokens: int = Field(default=1 << 25, ge=1 << 10)
