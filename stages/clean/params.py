"""The section `clean`: how text is normalised and which documents are dropped."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.params import Section


class CleanParams(Section):
    """A rule whose threshold is null is off. Ratios lie between 0 and 1."""

    html: Literal["auto", "always", "never"] = "auto"
    min_words: int | None = Field(default=20, ge=1)
    max_words: int | None = Field(default=200_000, ge=1)
    min_mean_word_length: float | None = Field(default=3.0, ge=0)
    max_mean_word_length: float | None = Field(default=12.0, gt=0)
    min_alphabetic_ratio: float | None = Field(default=0.4, ge=0, le=1)
    max_duplicate_line_ratio: float | None = Field(default=0.5, ge=0, le=1)
    max_duplicate_paragraph_ratio: float | None = Field(default=0.5, ge=0, le=1)
    max_top_2gram_ratio: float | None = Field(default=0.2, ge=0, le=1)
    max_top_3gram_ratio: float | None = Field(default=0.18, ge=0, le=1)
    max_top_4gram_ratio: float | None = Field(default=0.16, ge=0, le=1)

    @model_validator(mode="after")
    def _leaves_something(self) -> CleanParams:
        for name in ("words", "mean_word_length"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} {low:g} is above max_{name} {high:g}; no document could pass")
        return self
