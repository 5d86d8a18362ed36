"""The section `clean`: how text is normalised and which documents are dropped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params import Section

Auto = Literal["auto"] | None
Ratio = Annotated[float, Field(ge=0, le=1)] | Auto
Count = Annotated[int, Field(ge=1)] | Auto
Length = Annotated[float, Field(gt=0)] | Auto
Switch = bool | Literal["auto"]


class CleanParams(Section):
    """A rule that is `auto` has the threshold of the recipe (rules.py); null or false switches it off."""

    html: Literal["auto", "always", "never"] = "auto"
    fix_mojibake: Literal["auto", "never"] = "auto"
    mask_pii: bool = False
    languages: list[str] = Field(default_factory=list)
    min_language_score: float = Field(default=0.65, ge=0, le=1)
    recipe: Literal["documentation", "gopher", "c4", "fineweb", "none"] = "documentation"
    max_duplicate_paragraph_ratio: Ratio = "auto"
    max_duplicate_paragraph_character_ratio: Ratio = "auto"
    max_duplicate_line_ratio: Ratio = "auto"
    max_duplicate_line_character_ratio: Ratio = "auto"
    max_top_2gram_ratio: Ratio = "auto"
    max_top_3gram_ratio: Ratio = "auto"
    max_top_4gram_ratio: Ratio = "auto"
    max_duplicate_5gram_ratio: Ratio = "auto"
    max_duplicate_6gram_ratio: Ratio = "auto"
    max_duplicate_7gram_ratio: Ratio = "auto"
    max_duplicate_8gram_ratio: Ratio = "auto"
    max_duplicate_9gram_ratio: Ratio = "auto"
    max_duplicate_10gram_ratio: Ratio = "auto"
    min_words: Count = "auto"
    max_words: Count = "auto"
    min_mean_word_length: Length = "auto"
    max_mean_word_length: Length = "auto"
    max_hash_ratio: Ratio = "auto"
    max_ellipsis_ratio: Ratio = "auto"
    max_bullet_line_ratio: Ratio = "auto"
    max_ellipsis_line_ratio: Ratio = "auto"
    min_alphabetic_ratio: Ratio = "auto"
    min_stop_words: Count = "auto"
    stop_words: list[str] = ["the", "be", "to", "of", "and", "that", "have", "with"]
    drop_lorem_ipsum: Switch = "auto"
    drop_curly_brackets: Switch = "auto"
    min_sentences: Count = "auto"
    max_line_word_length: Count = "auto"
    drop_citations: Switch = "auto"
    drop_unpunctuated_lines: Switch = "auto"
    min_line_words: Count = "auto"
    drop_javascript_lines: Switch = "auto"
    drop_policy_lines: Switch = "auto"
    min_punctuated_line_ratio: Ratio = "auto"
    max_short_line_ratio: Ratio = "auto"
    short_line_length: int = Field(default=30, ge=0)
    max_repeated_line_ratio: Ratio = "auto"
    max_line_end_ratio: Ratio = "auto"

    @model_validator(mode="after")
    def _leaves_something(self) -> CleanParams:
        from stages.clean.rules import RULES, thresholds

        limits = dict(zip(RULES, thresholds(self), strict=True))
        for name in ("words", "mean_word_length"):
            low, high = limits[f"min_{name}"], limits[f"max_{name}"]
            if low > high:
                raise ValueError(f"min_{name} {low:g} is above max_{name} {high:g}; no document could pass")
        if limits["min_stop_words"] > len(set(self.stop_words)):
            raise ValueError(f"min_stop_words {limits['min_stop_words']:g} asks for more words than stop_words has")
        return self
