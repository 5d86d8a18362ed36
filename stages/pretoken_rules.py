"""The ways to cut text into pre-tokens that our kernels know, and which of them a tokenizer.json asks for.

GPT4 stands for the pattern below, ours, and for those of GPT-4, Llama 3 and Qwen 2, which match the same
but for the digits in a group; GPT2 for the one that the pre-tokenizer ByteLevel brings along; CHARACTERS
for every character by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Contractions; words with one leading non-letter; digits; punctuation with line ends; white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,MAX_DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHARACTER_PATTERN = r"[\s\S]"
GPT4, GPT2, CHARACTERS = range(3)
DIGITS = re.compile(r"\\p\{N\}(?:\{1,(\d+)\})?\|")  # in a pattern: one to so many, or one


class Rule(NamedTuple):
    """How text is cut. `max_digits` is the length of a group of digits; only style GPT4 limits it."""

    style: int
    max_digits: int


def pre_tokenizer(rule: Rule) -> PreTokenizer:
    """Cuts text by the rule, and writes every byte as one printable character."""
    from tokenizers import Regex, pre_tokenizers

    if rule.style == GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = SPLIT_PATTERN.replace("MAX_DIGITS", str(rule.max_digits))
    pattern = Regex(ours if rule.style == GPT4 else CHARACTER_PATTERN)
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def rule_of(described: Any) -> Rule | None:
    """The rule of the part `pre_tokenizer` of a tokenizer.json; None if it is another."""
    match described:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return Rule(GPT2, 0)
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return _rule_of_pattern(pattern)
    return None


def _rule_of_pattern(pattern: str) -> Rule | None:
    if pattern == CHARACTER_PATTERN:
        return Rule(CHARACTERS, 0)
    digits = DIGITS.search(pattern)
    if digits is None:
        return None
    ours = SPLIT_PATTERN.replace(r"{1,MAX_DIGITS}", "")
    theirs = pattern.replace(digits[0], r"\p{N}|").replace(r"|\s*[\r\n]+|", r"|\s*[\r\n]|")
    return Rule(GPT4, int(digits[1] or 1)) if theirs == ours and digits[1] != "0" else None
