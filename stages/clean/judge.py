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

from stages.clean.english import english
from stages.clean.lines import (
    KEEP,
    LOREM_IPSUM,
    Counts,
    Numbers,
    count_sentences,
    keep_lines,
    line_counts,
    marks,
    stripped,
)
from stages.clean.params import CleanParams
from stages.clean.repetition import (
    BASE,
    Hashes,
    Room,
    grown,
    hash_words,
    mark_repeated,
    repeated_ngrams,
    repeated_parts,
    room,
    top_ngram,
)
from stages.clean.rules import LINE_RULES, RULES, thresholds
from stages.clean.words import PASSED, Codes, Flags, Rules, empty_memo, read_texts, words_of_texts
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
def judge_parts(
    codes: Codes, flags: Flags, places: Offsets, limits: Numbers, room: Room, rules: Rules, values: Numbers
) -> bool:
    """The rules on repeated paragraphs and lines; False: no room."""
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
def judge_words(
    codes: Codes,
    flags: Flags,
    places: Offsets,
    words: Offsets,
    limits: Numbers,
    stop_words: Hashes,
    room: Room,
    rules: Rules,
    values: Numbers,
) -> None:
    """The rules on n-grams, and Gopher's on the quality of words and lines."""
    top_rules = 0
    for n in range(2, 5):
        top_rules = top_rules if np.isnan(limits[TOP + n - 2]) else n
    for text in range(len(places) - 1):
        if rules[text] != PASSED:
            continue
        begin, end, first, last = places[text], places[text + 1], words[text], words[text + 1]
        if first == last:
            rules[text] = 0
            continue
        n_plain, plain_characters, n_alphabetic, n_stop_words = hash_words(codes, flags, first, last, stop_words, room)
        rule, value, repeated, marked = PASSED, 0.0, np.int64(-1), np.int64(-1)
        for n in range(2, 11):
            limit = limits[TOP + n - 2]
            if rule != PASSED or (n > top_rules and np.isnan(limit)):
                continue
            if n < 5:
                characters, count, repeated = top_ngram(n, first, last, repeated, room)
                value = ratio(characters * count, end - begin)
            else:
                if marked < 0:
                    marked = mark_repeated(codes, first, last, n, room)
                value = ratio(repeated_ngrams(n, last, marked, room), end - begin) if marked else 0.0
            if value > limit:
                rule = TOP + n - 2
        if rule == PASSED:
            hashes, ellipses, _ = marks(codes, begin, end)
            lines, bullet_lines, ellipsis_lines, _, _, _ = line_counts(codes, flags, begin, end, 0)
            n_words = last - first
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
                    rule = place
                    break
        rules[text], values[text] = rule, value


@bare_kernel
def remove_lines(
    codes: Codes,
    flags: Flags,
    places: Offsets,
    limits: Numbers,
    line_limits: Numbers,
    rules: Rules,
    values: Numbers,
    out: Codes,
    out_places: Offsets,
    removed: Counts,
) -> None:
    """C4's rules on lines, and on lorem ipsum and curly brackets; the lines that stay go to `out`."""
    lorem, curly = not np.isnan(limits[LINES]), not np.isnan(limits[LINES + 1])
    written = 0
    for text in range(len(places) - 1):
        out_places[text] = written
        if rules[text] == PASSED:
            begin, end = places[text], places[text + 1]
            kept, written = keep_lines(codes, flags, begin, end, out, written, line_limits, lorem, curly, removed)
            if kept != KEEP:
                rules[text], values[text] = (LINES if kept == LOREM_IPSUM else LINES + 1), 1.0
            elif written > out_places[text]:
                written -= 1  # its last line end
    out_places[len(places) - 1] = written


@bare_kernel
def judge_page(
    codes: Codes,
    flags: Flags,
    places: Offsets,
    words: Offsets,
    limits: Numbers,
    short: int,
    room: Room,
    rules: Rules,
    values: Numbers,
) -> bool:
    """The fewest sentences, and FineWeb's rules; False: no room."""
    for text in range(len(places) - 1):
        if rules[text] != PASSED:
            continue
        begin, end, first, last = places[text], places[text + 1], words[text], words[text + 1]
        sentences = count_sentences(codes, flags, room.begins, room.ends, first, last)
        rule, value = PASSED, float(sentences)
        if sentences < limits[SENTENCES]:
            rule = SENTENCES
        elif first == last:
            rule = 0
        else:
            _, _, _, lines, punctuated, short_lines = line_counts(codes, flags, begin, end, short)
            _, _, line_ends = marks(codes, begin, end)
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
    n, tables = len(offsets) - 1, english()
    memo = empty_memo()
    limits, line_limits = thresholds(params), thresholds(params, LINE_RULES)
    on, lines_on = ~np.isnan(limits), ~np.isnan(line_limits)
    stop_words = np.array([polynomial(word) for word in sorted(set(params.stop_words))], np.uint64)
    rules, values, removed = np.full(n, PASSED, np.int8), np.zeros(n), np.zeros(len(LINE_RULES), np.int64)
    codes, flags, places = np.empty(len(data), np.int32), np.empty(len(data), np.uint16), np.empty(n + 1, np.int64)
    words = np.empty(n + 1, np.int64)
    read_texts(data, offsets, tables.classes, codes, flags, places)
    space = room(max(LEAST_ROOM, 1 << (len(data) // 4).bit_length()))  # a word has 4 bytes or more, mostly
    while not judge_parts(codes, flags, places, limits, space, rules, values):
        space = grown(space)
    while not words_of_texts(codes, flags, places, tables, memo, space.begins, space.ends, rules, words):
        space = grown(space)
    judge_words(codes, flags, places, words, limits, stop_words, space, rules, values)
    if lines_on.any() or on[LINES : LINES + 2].any():
        out, out_places = np.empty(len(data) + n + 1, np.int32), np.empty(n + 1, np.int64)
        remove_lines(codes, flags, places, limits, line_limits, rules, values, out, out_places, removed)
        if lines_on.any():
            codes, places = out[: out_places[-1]], out_places
            flags = tables.classes[codes]
            while not words_of_texts(codes, flags, places, tables, memo, space.begins, space.ends, rules, words):
                space = grown(space)
    if on[SENTENCES:].any() or lines_on.any():
        while not judge_page(codes, flags, places, words, limits, params.short_line_length, space, rules, values):
            space = grown(space)
    return Verdicts(rules, values, _texts(codes, places) if lines_on.any() else None, removed)


def _texts(codes: Codes, places: Offsets) -> list[str]:
    whole = codes.tobytes().decode("utf-32-le")
    return [whole[begin:end].strip() for begin, end in pairwise(places.tolist())]


def polynomial(word: str) -> int:
    """The hash of one word, as hash_words computes it."""
    value = 0
    for character in word:
        value = (value * int(BASE) + ord(character)) % 2**64
    return value
