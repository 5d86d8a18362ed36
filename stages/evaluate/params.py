"""The section `evaluate` of params.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from stages.files import file_sha256
from stages.params import Section

NAME = re.compile(r"[a-z][a-z0-9_]*")
OWN_SPLITS = ("test", "validation")


class TextFile(Section):
    """A file of text to be evaluated, named with its sha256, since DVC does not watch it."""

    path: str
    sha256: str = ""
    column: str = "text"

    def problem(self, root: Path) -> str:
        """What is wrong with the file below `root`, the folder of params.yaml, or nothing."""
        path = root / self.path
        if not path.is_file():
            return f"{self.path}: not there; name a file, from the folder of params.yaml on"
        found = file_sha256(path)
        if found == self.sha256:
            return ""
        return f"{self.path}: its sha256 is {found}, not {self.sha256 or 'given'}; paste it if the file is right"


class EvaluateParams(Section):
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["fp32", "bf16"] = "fp32"
    bootstrap_samples: int = Field(default=1000, ge=100)
    max_baseline_tokens: int = Field(default=20_000_000, ge=1)
    max_analysis_tokens: int = Field(default=8192, ge=1)
    max_ablation_tokens: int = Field(default=2048, ge=1)
    context_overlap: float = Field(default=0.5, ge=0, le=0.95)
    texts: dict[str, TextFile] = {}
    embedding_tokens: int = Field(default=500, ge=0)
    prompts: list[str] = Field(
        default=["Returns the number of", "Parameters\n----------\nx :", "If the file does not exist,"]
    )
    generated_texts: int = Field(default=16, ge=0)
    sample_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)

    @field_validator("texts")
    @classmethod
    def _names_metrics(cls, value: dict[str, TextFile]) -> dict[str, TextFile]:
        for name in value:
            if not NAME.fullmatch(name) or name in OWN_SPLITS:
                raise ValueError(
                    f"{name!r} begins the names of its metrics: a-z, 0-9 and _, and neither of {OWN_SPLITS}"
                )
        return value
