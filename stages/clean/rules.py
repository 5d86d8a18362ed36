"""Decides whether a document is text worth learning from, by rules that can each be switched off.

A rule is a number measured on the cleaned text and a threshold in params; its name says which side
drops: `min_words` drops what is below, `max_top_2gram_ratio` what is above. The first rule that
fails is the verdict. The measures follow Gopher (Rae et al. 2021, appendix A.1.1), with words split
at white space. Example: "a b a b a c" has 6 words; its top 2-gram "a b" occurs twice and holds
2 x 2 of 6 word characters, a ratio of 0.67, so max_top_2gram_ratio 0.2 drops it.

Thresholds are looser than Gopher's where documentation differs from web prose: its pages repeat
headings and rules of dashes, and its examples are numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

from stages.clean.params import CleanParams

LETTER = re.compile(r"[^\W\d_]")
PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


class Failure(NamedTuple):
    """The rule that dropped a document, what it measured, and what it allows."""

    rule: str
    value: float
    threshold: float


class Page:
    """A cleaned text with its words; each measure takes a page and gives one number."""

    def __init__(self, text: str):
        self.text = text
        self.words = text.split()

    @cached_property
    def word_characters(self) -> int:
        return sum(map(len, self.words))

    def n_words(self) -> float:
        return float(len(self.words))

    def mean_word_length(self) -> float:
        """Characters a word."""
        return self.word_characters / max(len(self.words), 1)

    def alphabetic_ratio(self) -> float:
        """The share of words with at least one letter of any script."""
        return sum(1 for word in self.words if LETTER.search(word)) / max(len(self.words), 1)

    def duplicate_line_ratio(self) -> float:
        """The share of characters in lines that stood before in the document, indentation aside."""
        return _repeated_share(line.strip() for line in self.text.split("\n"))

    def duplicate_paragraph_ratio(self) -> float:
        """The same for paragraphs, which end at an empty line."""
        return _repeated_share(paragraph.strip() for paragraph in PARAGRAPH_END.split(self.text))

    def top_ngram_ratio(self, n: int) -> float:
        """The share of word characters in the most frequent n-gram (the longest of equally frequent ones).

        Occurrences may overlap, so a text of one repeated word reaches n; an n-gram that occurs once counts 0.
        """
        counts = Counter(zip(*(self.words[start:] for start in range(n)), strict=False))
        most = max(counts.values(), default=0)
        if most < 2:
            return 0.0
        longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
        return most * longest / self.word_characters


def _repeated_share(parts: Iterable[str]) -> float:
    counts = Counter(part for part in parts if part)
    total = sum(len(part) * count for part, count in counts.items())
    repeated = sum(len(part) * (count - 1) for part, count in counts.items())
    return repeated / max(total, 1)


RULES: dict[str, Callable[[Page], float]] = {
    "min_words": Page.n_words,
    "max_words": Page.n_words,
    "min_mean_word_length": Page.mean_word_length,
    "max_mean_word_length": Page.mean_word_length,
    "min_alphabetic_ratio": Page.alphabetic_ratio,
    "max_duplicate_line_ratio": Page.duplicate_line_ratio,
    "max_duplicate_paragraph_ratio": Page.duplicate_paragraph_ratio,
    "max_top_2gram_ratio": lambda page: page.top_ngram_ratio(2),
    "max_top_3gram_ratio": lambda page: page.top_ngram_ratio(3),
    "max_top_4gram_ratio": lambda page: page.top_ngram_ratio(4),
}
EMPTY = "empty"  # not a rule: a document without a word is no document


def first_failure(text: str, params: CleanParams) -> Failure | None:
    """The first rule, in the order of `RULES`, that drops the cleaned text; None if all let it pass."""
    page = Page(text)
    if not page.words:
        return Failure(EMPTY, 0.0, 1.0)
    for name, measure in RULES.items():
        threshold = getattr(params, name)
        if threshold is None:
            continue
        value = measure(page)
        if value < threshold if name.startswith("min_") else value > threshold:
            return Failure(name, value, float(threshold))
    return None
