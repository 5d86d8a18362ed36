"""The section `download`: where documents come from and how many are taken."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from stages.params import Section

GLOB_CHARACTERS = re.compile(r"[*?\[]")


class DownloadParams(Section):
    source: Literal["python_docs", "files", "huggingface"] = "python_docs"
    max_documents: int = Field(default=0, ge=0)
    max_bytes: int = Field(default=0, ge=0)
    any_version: bool = False
    inputs: str = "inputs"
    include: str = "**/*"
    text_column: str = "text"
    max_document_mb: float = Field(default=32, gt=0, le=1000)
    dataset: str = "HuggingFaceFW/fineweb-edu"
    dataset_config: str = "CC-MAIN-2024-10"
    dataset_split: str = "train"
    revision: str = ""

    @model_validator(mode="after")
    def _possible(self) -> DownloadParams:
        if not self.inputs or GLOB_CHARACTERS.search(self.inputs):
            raise ValueError(
                f"inputs is {self.inputs!r}; it must be one folder or file, because DVC watches it; "
                "a pattern goes to download.include"
            )
        if not self.include or self.include.startswith("/"):
            raise ValueError(f"include is {self.include!r}; it must be a pattern below inputs, such as **/*.jsonl")
        if not self.text_column:
            raise ValueError("text_column is empty; name the column that holds the text")
        if self.source == "huggingface" and not (self.dataset and self.dataset_split):
            raise ValueError("source huggingface needs download.dataset and download.dataset_split")
        return self
