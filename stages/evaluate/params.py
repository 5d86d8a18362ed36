"""The section `evaluate` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from stages.params import Section


class EvaluateParams(Section):
    seed: int = Field(default=0, ge=0)
    bootstrap_samples: int = Field(default=1000, ge=100)
    max_baseline_tokens: int = Field(default=20_000_000, ge=1)
    max_analysis_tokens: int = Field(default=8192, ge=1)
    prompts: list[str] = Field(
        default=["Returns the number of", "Parameters\n----------\nx :", "If the file does not exist,"]
    )
    sample_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
