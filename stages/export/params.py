"""The section `export` of params.yaml."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from stages.params import Section

Format = Literal["hf", "onnx", "int8", "int8_dynamic", "int4", "gguf"]
GgufType = Literal["f32", "f16", "q8_0"]
FORMATS: tuple[Format, ...] = get_args(Format)  # each a folder below data/export


class ExportParams(Section):
    registered_model: str = Field(default="millrace", pattern=r"^[^/:.%\"']+$")
    formats: list[Format] = ["hf", "onnx", "int8", "int8_dynamic", "int4"]
    check_documents: int = Field(default=8, ge=1)
    check_tokens: int = Field(default=32, ge=1)
    max_difference: float = Field(default=1e-4, gt=0)
    int4_group_size: Literal[32, 64, 128] = 64
    gguf_types: list[GgufType] = Field(default=["f16", "q8_0"])
    perplexity_rows: int = Field(default=256, ge=1)
    max_int8_perplexity_ratio: float = Field(default=1.005, ge=1)
    max_int4_perplexity_ratio: float = Field(default=1.03, ge=1)

    @field_validator("formats")
    @classmethod
    def _hf_is_the_first(cls, formats: list[Format]) -> list[Format]:
        if "hf" not in formats:
            raise ValueError("lacks hf, which the others are checked against; add it")
        return formats

    @field_validator("formats", "gguf_types")
    @classmethod
    def _once_each(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("names one twice")
        if not names:
            raise ValueError("is empty; name at least one")
        return names
