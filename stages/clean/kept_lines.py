"""Removes lines that are no text, and keeps the words of the others: kernels for C4's rules.

    We use cookies.       removed by drop_policy_lines
    - item                removed by min_line_words 3 and by drop_unpunctuated_lines
    It is so [3].         kept, as "It is so ."

Letters of ASCII are compared whatever their case. No word crosses a line, so the words of a line that stays as it is
are those that were found in the whole text; only a line that lost a citation is split anew.
"""

from __future__ import annotations

import numpy as np

from stages.clean.code_points import STOP, Codes, Flags, Places, is_digit
from stages.clean.english import SPACE, English
from stages.clean.lines import Counts, Numbers, line_end, stripped
from stages.clean.repetition import NEW_LINE
from stages.clean.rules import LINE_RULES
from stages.clean.words import Memo, Texts, find_words
from stages.compiled import bare_kernel

LONG_WORD, CITATIONS, UNPUNCTUATED, FEW_WORDS, JAVASCRIPT, POLICY = range(len(LINE_RULES))
KEEP, LOREM_IPSUM, CURLY_BRACKET, NO_ROOM = -1, -2, -3, -4
OPEN_BRACKET, CLOSE_BRACKET, CURLY = ord("["), ord("]"), ord("{")


def _phrases(*phrases: str) -> tuple[Codes, Places]:
    codes = np.array([ord(character) for phrase in phrases for character in phrase], np.int32)
    return codes, np.cumsum([0, *map(len, phrases)]).astype(np.int32)


POLICY_PHRASES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PHRASES, PHRASE_OFFSETS = _phrases("lorem ipsum", "javascript", *POLICY_PHRASES)
CITATION_PHRASES, CITATION_OFFSETS = _phrases("[edit]", "[citation needed]")
PHRASE_BEGINS = np.zeros(32, np.uint32)  # for each letter that begins a phrase a bit for each that comes second
for _first in PHRASE_OFFSETS[:-1]:
    PHRASE_BEGINS[PHRASES[_first] & 31] |= np.uint32(1 << (PHRASES[_first + 1] & 31))


@bare_kernel
def same_phrase(codes: Codes, place: int, end: int, phrases: Codes, first: int, last: int, any_case: bool) -> bool:
    if end - place < last - first:
        return False
    for offset in range(last - first):
        code = codes[place + offset]
        if any_case and 65 <= code <= 90:
            code |= 32
        if code != phrases[first + offset]:
            return False
    return True


@bare_kernel
def phrases_in(codes: Codes, begin: int, end: int) -> int:
    """A bit for each of PHRASES that stands in the line."""
    found = 0
    for place in range(begin, end - 1):
        code, following = codes[place], codes[place + 1]
        if 64 < code < 128 and PHRASE_BEGINS[code & 31] >> np.uint32(following & 31) & np.uint32(1):
            for number in range(len(PHRASE_OFFSETS) - 1):
                if same_phrase(codes, place, end, PHRASES, PHRASE_OFFSETS[number], PHRASE_OFFSETS[number + 1], True):
                    found |= 1 << number
    return found


@bare_kernel
def citation_length(codes: Codes, place: int, end: int) -> int:
    """The length of the citation that begins here, such as [12] or [citation needed]; 0 if none does."""
    if codes[place] != OPEN_BRACKET:
        return 0
    after = place + 1
    while after < end and is_digit(codes[after]):
        after += 1
    if after < end and codes[after] == CLOSE_BRACKET:
        return after + 1 - place
    for number in range(len(CITATION_OFFSETS) - 1):
        first, last = CITATION_OFFSETS[number], CITATION_OFFSETS[number + 1]
        if same_phrase(codes, place, end, CITATION_PHRASES, first, last, False):
            return int(last - first)
    return 0


@bare_kernel
def copy_line(codes: Codes, begin: int, end: int, out: Codes, written: int, cited: bool) -> int:
    """Copies a line to `out`, without its citations if it may have some; where the copy ends."""
    if not cited:
        for place in range(begin, end):
            out[written + place - begin] = codes[place]
        return written + end - begin
    after = begin
    for place in range(begin, end):
        after = max(after, place + citation_length(codes, place, end))
        if place >= after:
            out[written] = codes[place]
            written += 1
    return written


@bare_kernel
def judge_line(
    codes: Codes, flags: Flags, begin: int, end: int, out: Codes, written: int, rules: Numbers, lorem: bool, curly: bool
) -> tuple[int, int]:
    """Copies a line without its citations to `out`; KEEP or what removes line or document, and where the copy ends."""
    words = longest = length = brackets = braces = 0
    for place in range(begin, end):
        length = 0 if flags[place] & SPACE else length + 1
        words += length == 1
        longest = max(longest, length)
        brackets += codes[place] == OPEN_BRACKET
        braces += codes[place] == CURLY
    first, written = written, copy_line(codes, begin, end, out, written, rules[CITATIONS] > 0 and brackets > 0)
    if longest > rules[LONG_WORD]:
        return LONG_WORD, written
    if rules[UNPUNCTUATED] > 0:
        last = out[written - 1] if written > first else 0
        dots = written - first >= 3 and last == STOP and out[written - 2] == STOP and out[written - 3] == STOP
        if dots or not (last == STOP or last == 33 or last == 34 or last == 39 or last == 63):  # ! " ' ?
            return UNPUNCTUATED, written
    if words < rules[FEW_WORDS]:
        return FEW_WORDS, written
    found = phrases_in(out, first, written)
    if lorem and found & 1:
        return LOREM_IPSUM, written
    if rules[JAVASCRIPT] > 0 and found & 2:
        return JAVASCRIPT, written
    if curly and braces:
        return CURLY_BRACKET, written
    return (POLICY if rules[POLICY] > 0 and found >> 2 else KEEP), written


@bare_kernel
def keep_lines(
    texts: Texts,
    text: int,
    rules: Numbers,
    lorem: bool,
    curly: bool,
    english: English,
    memo: Memo,
    kept: Texts,
    written: int,
    count: int,
    removed: Counts,
) -> tuple[int, int, int]:
    """Copies the lines of a text that may stay, without the spaces around them, and their words.

    Args:
        written, count: how many code points and how many words of `kept` are in use.
        removed: how many lines each of LINE_RULES removed.

    Returns:
        KEEP, or LOREM_IPSUM, CURLY_BRACKET or NO_ROOM, which keep nothing; what is in use now.
    """
    begin, end, word = texts.places[text], texts.places[text + 1], texts.firsts[text]
    start, first_word = written, count
    while begin < end:
        last = line_end(texts.codes, begin, end)
        first, stop = stripped(texts.flags, begin, last)
        verdict, after = judge_line(texts.codes, texts.flags, first, stop, kept.codes, written, rules, lorem, curly)
        if verdict == KEEP and count + stop - first >= len(kept.words.begins):
            verdict = NO_ROOM
        if verdict < KEEP:
            return verdict, start, first_word
        while texts.words.begins[word] < first:
            word += 1
        if verdict != KEEP:
            removed[verdict] += 1
        elif after - written == stop - first:
            word, count = copy_words(texts, first, stop, word, kept, written, count)
        else:  # a citation went
            for place in range(written, after):
                kept.flags[place] = english.classes[kept.codes[place]]
            count = find_words(kept.codes, kept.flags, written, after, english, memo, kept.words, count)
            if count < 0:
                return NO_ROOM, start, first_word
        if verdict == KEEP:
            kept.codes[after], kept.flags[after] = NEW_LINE, english.classes[NEW_LINE]
            written = after + 1
        begin = last + 1
    return KEEP, max(start, written - 1), count  # without the last line end


@bare_kernel
def copy_words(
    texts: Texts, first: int, stop: int, word: int, kept: Texts, written: int, count: int
) -> tuple[int, int]:
    """Copies the words of a line that stays as it is, and the flags of its characters; the next word, and the count."""
    begins, ends = texts.words.begins, texts.words.ends
    for place in range(first, stop):
        kept.flags[written + place - first] = texts.flags[place]
    while begins[word] < stop:
        kept.words.begins[count] = begins[word] - first + written
        kept.words.ends[count] = ends[word] - first + written
        word += 1
        count += 1
    return word, count
