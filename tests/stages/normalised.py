"""Normalised text in plain Python, as docs/dedup.md defines it: the oracle of stages/shingles.py, and slow.

Words are maximal runs of letters, marks, numbers and underscores, in simple lower case; a letter or
number of a script without spaces is a word by itself, with the marks after it.

    "The cat, the CAT! 日本語"  ->  the cat the cat 日 本 語
"""

from __future__ import annotations

import functools
import re

import numpy as np

from stages.unicode import LETTER, LONE, MARK, NUMBER, tables


def normalised_words(text: str) -> list[str]:
    """The words of a text. A text without a word is its own only word."""
    return word_pattern().findall(text.translate(lower_case())) or [text]


def shingle_set(text: str, ngram: int = 5) -> set[tuple[str, ...]]:
    """The distinct runs of `ngram` words; of fewer words, all of them."""
    words = normalised_words(text)
    return {tuple(words[at : at + ngram]) for at in range(max(len(words) - ngram + 1, 1))}


@functools.lru_cache
def word_pattern() -> re.Pattern[str]:
    classes, _ = tables()
    is_word = (classes & (LETTER | MARK | NUMBER)) != 0
    is_word[ord("_")] = True
    is_lone = (classes & LONE != 0) & (classes & (LETTER | NUMBER) != 0)
    marks = classes & MARK != 0
    return re.compile(f"[{ranges(is_lone)}][{ranges(marks)}]*|[{ranges(is_word & ~is_lone)}]+")


def ranges(wanted: np.ndarray) -> str:
    """A regular expression's set of the code points that are wanted."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return "".join(f"\\U{first:08x}-\\U{last - 1:08x}" for first, last in edges.reshape(-1, 2))


@functools.lru_cache
def lower_case() -> dict[int, int]:
    _, lower = tables()
    return {int(at): int(lower[at]) for at in np.flatnonzero(lower != np.arange(len(lower)))}
