"""The quality rules by name, in the order in which they judge, and the recipes that set their thresholds.

A rule is a number measured on the cleaned text and a threshold; its name says which side drops: `min_words`
drops what is below, `max_hash_ratio` what is above, `drop_curly_brackets: true` what has one. The first
rule that fails is the verdict. Order and measures are those of datatrove's filters in FineWeb's order:

    Gopher repetition -> Gopher quality -> C4 -> FineWeb        (names below, group by group)

Example: "a b a b a c" has 11 characters; its most frequent pair "a b" of 3 characters occurs twice, a
ratio of 6/11, so max_top_2gram_ratio 0.2 drops it. Words are those of words.py.

`LINE_RULES` remove lines, not documents, and leave every line without the spaces around it: they fit
web pages and destroy code. They are on in the recipes c4 and fineweb only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.clean.params import CleanParams

EMPTY = "empty"  # not a rule: a document without a word is no document
RULES = (
    EMPTY,
    # Gopher, repetition (Rae et al. 2021, table A1)
    "max_duplicate_paragraph_ratio",
    "max_duplicate_paragraph_character_ratio",
    "max_duplicate_line_ratio",
    "max_duplicate_line_character_ratio",
    *(f"max_top_{n}gram_ratio" for n in (2, 3, 4)),
    *(f"max_duplicate_{n}gram_ratio" for n in range(5, 11)),
    # Gopher, quality
    "min_words",
    "max_words",
    "min_mean_word_length",
    "max_mean_word_length",
    "max_hash_ratio",
    "max_ellipsis_ratio",
    "max_bullet_line_ratio",
    "max_ellipsis_line_ratio",
    "min_alphabetic_ratio",
    "min_stop_words",
    # C4 (Raffel et al. 2020), documents
    "drop_lorem_ipsum",
    "drop_curly_brackets",
    "min_sentences",
    # FineWeb (Penedo et al. 2024)
    "min_punctuated_line_ratio",
    "max_short_line_ratio",
    "max_repeated_line_ratio",
    "max_line_end_ratio",
)
LINE_RULES = (
    "max_line_word_length",
    "drop_citations",
    "drop_unpunctuated_lines",
    "min_line_words",
    "drop_javascript_lines",
    "drop_policy_lines",
)
OFF = np.nan

GOPHER: dict[str, float] = {
    "max_duplicate_paragraph_ratio": 0.3,
    "max_duplicate_paragraph_character_ratio": 0.2,
    "max_duplicate_line_ratio": 0.3,
    "max_duplicate_line_character_ratio": 0.2,
    "max_top_2gram_ratio": 0.2,
    "max_top_3gram_ratio": 0.18,
    "max_top_4gram_ratio": 0.16,
    "max_duplicate_5gram_ratio": 0.15,
    "max_duplicate_6gram_ratio": 0.14,
    "max_duplicate_7gram_ratio": 0.13,
    "max_duplicate_8gram_ratio": 0.12,
    "max_duplicate_9gram_ratio": 0.11,
    "max_duplicate_10gram_ratio": 0.1,
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 10,
    "max_hash_ratio": 0.1,
    "max_ellipsis_ratio": 0.1,
    "max_bullet_line_ratio": 0.9,
    "max_ellipsis_line_ratio": 0.3,
    "min_alphabetic_ratio": 0.8,
    "min_stop_words": 2,
}
C4: dict[str, float] = {
    "drop_lorem_ipsum": True,
    "drop_curly_brackets": True,
    "min_sentences": 5,
    "max_line_word_length": 1000,
    "drop_citations": True,
    "drop_unpunctuated_lines": True,
    "min_line_words": 3,
    "drop_javascript_lines": True,
    "drop_policy_lines": True,
}
FINEWEB: dict[str, float] = {
    "min_punctuated_line_ratio": 0.12,
    "max_short_line_ratio": 0.67,
    "max_repeated_line_ratio": 0.01,
    "max_line_end_ratio": 0.3,
}
# Looser than Gopher where documentation differs from web prose: its pages repeat headings and rules of dashes,
# and its examples are numbers and signs, which are words here.
DOCUMENTATION: dict[str, float] = {
    "max_duplicate_paragraph_character_ratio": 0.5,
    "max_duplicate_line_character_ratio": 0.5,
    "max_top_2gram_ratio": 0.3,
    "max_top_3gram_ratio": 0.3,
    "max_top_4gram_ratio": 0.3,
    "min_words": 20,
    "max_words": 200_000,
    "min_mean_word_length": 3,
    "max_mean_word_length": 12,
    "min_alphabetic_ratio": 0.25,
}
RECIPES: dict[str, dict[str, float]] = {
    "documentation": DOCUMENTATION,
    "gopher": GOPHER,
    "c4": C4,
    "fineweb": {**GOPHER, **C4, **FINEWEB, "drop_unpunctuated_lines": False},
    "none": {},
}


def thresholds(params: CleanParams, rules: tuple[str, ...] = RULES) -> npt.NDArray[np.float64]:
    """A number for each rule: the param's, or for `auto` the recipe's; not a number where the rule is off."""
    recipe = RECIPES[params.recipe]
    found = []
    for rule in rules:
        value = 1 if rule == EMPTY else getattr(params, rule)
        value = recipe.get(rule) if value == "auto" else value
        found.append(OFF if value is None or value is False else float(value))
    return np.array(found)
