"""Judges documents: compiled passes over many texts give each its verdict and the text that is kept.

    texts, params  ->  rule (its place in RULES, or -1), value, and the text to keep where lines were removed

A pass takes all documents that no earlier rule has dropped: repeated parts, then words and what is counted
on them, then lines, then what is left of the page. Measures of a group are taken only if one of its rules
is on. Working memory is about 60 bytes a word of the texts given together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stages.clean.code_points import read_texts
from stages.clean.english import English, english
from stages.clean.kept_lines import KEEP, LOREM_IPSUM, NO_ROOM, keep_lines
from stages.clean.lines import Counts, Numbers, count_sentences, line_counts, marks, stripped
from stages.clean.params import CleanParams
from stages.clean.repetition import (
    Room,
    grown,
    mark_repeated,
    repeated_ngrams,
    repeated_parts,
    room,
    sum_words,
    top_ngram,
)
from stages.clean.rules import LINE_RULES, RULES, thresholds
from stages.clean.words import BASE, PASSED, Hashes, Memo, Rules, Texts, Words, known_runs, words_of_texts
from stages.compiled import bare_kernel, inline_kernel
from stages.utf8 import Bytes, Offsets

PARTS, TOP, REPEATED, QUALITY, LINES, SENTENCES, PAGE = (
    RULES.index(name)
    for name in (
        "max_duplicate_paragraph_ratio",
        "max_top_2gram_ratio",
        "max_duplicate_5gram_ratio",
        "min_words",
        "drop_lorem_ipsum",
        "min_sentences",
        "min_punctuated_line_ratio",
    )
)
LEAST_ROOM = 1 << 12


class Verdicts(NamedTuple):
    """What became of texts.

    Attributes:
        rules: of each the rule that dropped it, as a place in RULES; -1: none.
        values: what that rule measured.
        texts: what to keep, where rules on lines were on; None: the texts as they are.
        lines_removed: how many lines each of LINE_RULES removed.
    """

    rules: Rules
    values: Numbers
    texts: list[str] | None
    lines_removed: Counts


@inline_kernel
def ratio(count: int, total: int) -> float:
    return count / total if total else 0.0


@bare_kernel
def judge_parts(texts: Texts, limits: Numbers, room: Room, rules: Rules, values: Numbers) -> bool:
    """The rules on repeated paragraphs and lines; False: no room."""
    codes, flags, places = texts.codes, texts.flags, texts.places
    for text in range(len(places) - 1):
        begin, end = places[text], places[text + 1]
        for breaks in range(2, 0, -1):
            rule = PARTS + 2 * (2 - breaks)
            if rules[text] != PASSED or (np.isnan(limits[rule]) and np.isnan(limits[rule + 1])):
                continue
            first, last = begin, end
            if breaks == 2:
                first, last = stripped(flags, begin, end)
            parts, repeated, characters = repeated_parts(codes, first, last, breaks, room)
            if parts < 0:
                return False
            if ratio(repeated, parts) > limits[rule]:
                rules[text], values[text] = rule, ratio(repeated, parts)
            elif ratio(characters, end - begin) > limits[rule + 1]:
                rules[text], values[text] = rule + 1, ratio(characters, end - begin)
    return True


@bare_kernel
def judge_words(texts: Texts, limits: Numbers, stop_words: Hashes, room: Room, rules: Rules, values: Numbers) -> None:
    """The rules on n-grams, and Gopher's on the quality of words and lines."""
    codes, _, places, firsts, words = texts
    top_rules = 0
    for n in range(2, 5):
        top_rules = top_rules if np.isnan(limits[TOP + n - 2]) else n
    for text in range(len(places) - 1):
        if rules[text] != PASSED:
            continue
        begin, end, first, last = places[text], places[text + 1], firsts[text], firsts[text + 1]
        if first == last:
            rules[text] = 0
            continue
        n_words = last - first
        counted = sum_words(words, first, last, stop_words, room)
        rule, value, repeated, marked = PASSED, 0.0, np.int64(-1), np.int64(-1)
        for n in range(2, 11):
            limit = limits[TOP + n - 2]
            if rule != PASSED or (n > top_rules and np.isnan(limit)):
                continue
            if n < 5:
                characters, count, repeated = top_ngram(n, n_words, repeated, room)
                value = ratio(characters * count, end - begin)
            else:
                if marked < 0:
                    marked = mark_repeated(codes, words, first, last, n, room)
                value = ratio(repeated_ngrams(n, n_words, marked, room), end - begin) if marked else 0.0
            if value > limit:
                rule = TOP + n - 2
        if rule == PASSED:
            rule, value = judge_quality(texts, text, limits, counted)
        rules[text], values[text] = rule, value


@bare_kernel
def judge_quality(texts: Texts, text: int, limits: Numbers, counted: tuple[int, int, int, int]) -> tuple[int, float]:
    """Gopher's rules on words and lines; the rule that fails or PASSED, and what was measured last."""
    codes, flags, places, firsts, _ = texts
    begin, end, n_words, value = places[text], places[text + 1], firsts[text + 1] - firsts[text], 0.0
    n_plain, plain_characters, n_alphabetic, n_stop_words = counted
    hashes, ellipses = marks(codes, begin, end)
    lines, bullet_lines, ellipsis_lines, _, _, _, _ = line_counts(codes, flags, begin, end, 0)
    for place in range(QUALITY, LINES):
        number = place - QUALITY
        value = (
            n_plain
            if number < 2
            else ratio(plain_characters, n_plain)
            if number < 4
            else ratio(hashes, n_words)
            if number == 4
            else ratio(ellipses, n_words)
            if number == 5
            else ratio(bullet_lines, lines)
            if number == 6
            else ratio(ellipsis_lines, lines)
            if number == 7
            else ratio(n_alphabetic, n_words)
            if number == 8
            else n_stop_words
        )
        below = number == 0 or (number == 2 and n_plain > 0) or number >= 8
        if (below and value < limits[place]) or (not below and number != 2 and value > limits[place]):
            return place, value
    return PASSED, value


@bare_kernel
def remove_lines(
    texts: Texts,
    limits: Numbers,
    line_limits: Numbers,
    english: English,
    memo: Memo,
    rules: Rules,
    values: Numbers,
    kept: Texts,
    removed: Counts,
) -> bool:
    """C4's rules on lines, and on lorem ipsum and curly brackets; the lines that stay go to `kept`. False: no room."""
    lorem, curly = not np.isnan(limits[LINES]), not np.isnan(limits[LINES + 1])
    codes_used = words_used = np.int64(0)
    removed[:] = 0
    for text in range(len(texts.places) - 1):
        kept.places[text], kept.firsts[text] = codes_used, words_used
        if rules[text] == PASSED:
            found, codes_used, words_used = keep_lines(
                texts, text, line_limits, lorem, curly, english, memo, kept, codes_used, words_used, removed
            )
            if found == NO_ROOM:
                return False
            if found != KEEP:
                rules[text], values[text] = (LINES if found == LOREM_IPSUM else LINES + 1), 1.0
    kept.places[len(texts.places) - 1], kept.firsts[len(texts.places) - 1] = codes_used, words_used
    return True


@bare_kernel
def judge_page(texts: Texts, limits: Numbers, short: int, room: Room, rules: Rules, values: Numbers) -> bool:
    """The fewest sentences, and FineWeb's rules; False: no room."""
    codes, flags, places, firsts, words = texts
    for text in range(len(places) - 1):
        if rules[text] != PASSED:
            continue
        begin, end, first, last = places[text], places[text + 1], firsts[text], firsts[text + 1]
        sentences = count_sentences(codes, flags, words, first, last)
        rule, value = PASSED, float(sentences)
        if sentences < limits[SENTENCES]:
            rule = SENTENCES
        elif first == last:
            rule = 0
        else:
            _, _, _, lines, punctuated, short_lines, line_ends = line_counts(codes, flags, begin, end, short)
            repeated = 0
            if not np.isnan(limits[PAGE + 2]):
                parts, _, repeated = repeated_parts(codes, begin, end, 1, room)
                if parts < 0:
                    return False
            for number in range(4):
                value = (
                    ratio(punctuated, lines)
                    if number == 0
                    else ratio(short_lines, lines)
                    if number == 1
                    else ratio(repeated, end - begin - line_ends)
                    if number == 2
                    else ratio(line_ends, last - first)
                )
                if (number == 0 and value < limits[PAGE]) or (number > 0 and value > limits[PAGE + number]):
                    rule = PAGE + number
                    break
        rules[text], values[text] = rule, value
    return True


def judge(data: Bytes, offsets: Offsets, params: CleanParams) -> Verdicts:
    """The verdict on each normalised text."""
    n, tables, memo = len(offsets) - 1, english(), known_runs()
    limits, line_limits = thresholds(params), thresholds(params, LINE_RULES)
    on, lines_on = ~np.isnan(limits), ~np.isnan(line_limits)
    stop_words = np.array([polynomial(word) for word in sorted(set(params.stop_words))], np.uint64)
    rules, values, removed = np.full(n, PASSED, np.int8), np.zeros(n), np.zeros(len(LINE_RULES), np.int64)
    space = room(max(LEAST_ROOM, 1 << (len(data) // 4).bit_length()))  # a word has 4 bytes or more, mostly
    texts = room_for_texts(len(data), n, space.words)
    read_texts(data, offsets, tables.classes, *texts[:3])
    while not judge_parts(texts, limits, space, rules, values):
        space = grown(space)
    while not words_of_texts(texts._replace(words=space.words), tables, memo, rules):
        space = grown(space)
    texts = texts._replace(words=space.words)
    judge_words(texts, limits, stop_words, space, rules, values)
    if lines_on.any() or on[LINES : LINES + 2].any():
        kept = room_for_texts(len(data) + n + 1, n, space.kept)
        before = rules.copy(), values.copy()
        while not remove_lines(texts, limits, line_limits, tables, memo, rules, values, kept, removed):
            space, (rules[:], values[:]) = grown(space), before
            kept = kept._replace(words=space.kept)
        texts = kept if lines_on.any() else texts
    if on[SENTENCES:].any() or lines_on.any():
        while not judge_page(texts, limits, params.short_line_length, space, rules, values):
            space = grown(space)
    return Verdicts(rules, values, _texts(texts) if lines_on.any() else None, removed)


def room_for_texts(n_codes: int, n_texts: int, words: Words) -> Texts:
    codes, flags = np.empty(n_codes, np.int32), np.empty(n_codes, np.uint16)
    places, firsts = (np.empty(n_texts + 1, np.int64) for _ in range(2))
    return Texts(codes, flags, places, firsts, words)


def _texts(texts: Texts) -> list[str]:
    whole = texts.codes[: texts.places[-1]].tobytes().decode("utf-32-le")
    return [whole[begin:end].strip() for begin, end in pairwise(texts.places.tolist())]


def polynomial(word: str) -> int:
    """The hash of one word, as `Words` has it."""
    value = 0
    for character in word:
        value = (value * int(BASE) + ord(character)) % 2**64
    return value
