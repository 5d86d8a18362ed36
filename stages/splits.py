"""Decides what is test text before anything that is ablated.

The split of a document is a pure function of its raw text and of the section `split`, so no change
of filters, dedup, tokenizer, packing or model can move a document from test to train. Example with
validation 0.01 and test 0.01: the hash of salt and text, as a fraction of 2^64, is test below 0.01,
validation below 0.02, train above.
"""

from __future__ import annotations

from typing import Literal

import xxhash
from pydantic import Field, model_validator

from stages.params import Section

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class SplitParams(Section):
    validation: float = Field(default=0.01, gt=0, lt=1)
    test: float = Field(default=0.01, gt=0, lt=1)
    salt: str = "millrace"

    @model_validator(mode="after")
    def _leaves_training_text(self) -> SplitParams:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test:g}; it must leave text to train on")
        return self


def split_of(raw_text: str, params: SplitParams) -> Split:
    """The split of the document with this raw text, as it was before any cleaning."""
    digest = xxhash.xxh3_64_intdigest(f"{params.salt}\0{raw_text}".encode("utf-8", "surrogatepass"))
    fraction = digest / 2**64
    if fraction < params.test:
        return "test"
    return "validation" if fraction < params.test + params.validation else "train"
