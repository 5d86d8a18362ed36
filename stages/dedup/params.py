"""The section `dedup`: when two documents are duplicates, and how candidates are found."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.params import Section

MAX_HASHES = 1024


class DedupParams(Section):
    enabled: bool = True
    ngram: int = Field(default=5, ge=1)
    bands: int = Field(default=28, ge=1)
    rows: int = Field(default=4, ge=1)
    verify: bool = True
    precheck: float = Field(default=0.55, ge=0, le=1)
    threshold: float = Field(default=0.75, gt=0, le=1)

    @property
    def n_hashes(self) -> int:
        """The length of a signature."""
        return self.bands * self.rows

    @model_validator(mode="after")
    def _possible(self) -> DedupParams:
        if self.n_hashes > MAX_HASHES:
            raise ValueError(f"bands x rows is {self.n_hashes} hashes a document; at most {MAX_HASHES} are useful")
        if self.verify and self.precheck > self.threshold:
            raise ValueError(
                f"precheck {self.precheck:g} is above threshold {self.threshold:g}; it would reject duplicates that "
                "the exact comparison accepts"
            )
        return self
