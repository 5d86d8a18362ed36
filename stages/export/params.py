"""The section `export` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from stages.params import Section


class ExportParams(Section):
    registered_model: str = Field(default="millrace", pattern=r"^[^/:.%\"']+$")
    check_documents: int = Field(default=8, ge=1)
    check_tokens: int = Field(default=32, ge=1)
    max_difference: float = Field(default=1e-4, gt=0)
