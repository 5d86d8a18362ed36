"""What lines tell about a page, and lines that are no text: kernels for the rules of Gopher, C4 and FineWeb.

    We use cookies.       removed by drop_policy_lines
    - item                begins with a bullet; removed by min_line_words 3 and by drop_unpunctuated_lines
    It is so [3].         kept by C4's rules, as "It is so ."

Letters of ASCII are compared whatever their case. Line ends are \\n: the text has been normalised.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.clean.english import LINE_END, PUNCTUATION, SENTENCE_END, SPACE
from stages.clean.repetition import NEW_LINE
from stages.clean.rules import LINE_RULES
from stages.clean.words import ELLIPSIS, HYPHEN, STOP, Codes, Flags, Places, is_digit
from stages.compiled import bare_kernel

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
LONG_WORD, CITATIONS, UNPUNCTUATED, FEW_WORDS, JAVASCRIPT, POLICY = range(len(LINE_RULES))
KEEP, LOREM_IPSUM, CURLY_BRACKET = -1, -2, -3
HASH, OPEN_BRACKET, CLOSE_BRACKET, CURLY, BULLET = ord("#"), ord("["), ord("]"), ord("{"), 0x2022


def _phrases(*phrases: str) -> tuple[Codes, Places]:
    codes = np.array([ord(character) for phrase in phrases for character in phrase], np.int32)
    return codes, np.cumsum([0, *map(len, phrases)]).astype(np.int32)


POLICY_PHRASES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PHRASES, PHRASE_OFFSETS = _phrases("lorem ipsum", "javascript", *POLICY_PHRASES)
CITATION_PHRASES, CITATION_OFFSETS = _phrases("[edit]", "[citation needed]")
PHRASE_BEGINS = np.isin(np.arange(128) | 32, PHRASES[PHRASE_OFFSETS[:-1]])


@bare_kernel
def line_end(codes: Codes, place: int, end: int) -> int:
    while place < end and codes[place] != NEW_LINE:
        place += 1
    return place


@bare_kernel
def ends_with_ellipsis(codes: Codes, begin: int, end: int) -> bool:
    if end > begin and codes[end - 1] == ELLIPSIS:
        return True
    return end - begin >= 3 and codes[end - 1] == STOP and codes[end - 2] == STOP and codes[end - 3] == STOP


@bare_kernel
def marks(codes: Codes, begin: int, end: int) -> tuple[int, int, int]:
    """Hashes, ellipses and line ends of a text."""
    hashes = ellipses = line_ends = stops = 0
    for place in range(begin, end):
        code = codes[place]
        hashes += code == HASH
        line_ends += code == NEW_LINE
        stops = stops + 1 if code == STOP else 0
        if stops == 3 or code == ELLIPSIS:
            ellipses += 1
            stops = 0
    return hashes, ellipses, line_ends


@bare_kernel
def stripped(flags: Flags, begin: int, end: int) -> tuple[int, int]:
    """A stretch of text without the white space around it."""
    while begin < end and flags[begin] & SPACE:
        begin += 1
    while end > begin and flags[end - 1] & SPACE:
        end -= 1
    return begin, end


@bare_kernel
def line_counts(codes: Codes, flags: Flags, begin: int, end: int, short: int) -> tuple[int, int, int, int, int, int]:
    """All lines, those that begin with a bullet, those that end with an ellipsis; and of the lines with text their
    number, those that end like a sentence, and those of at most `short` characters."""
    all_lines = bullets = ellipses = lines = punctuated = short_lines = 0
    while begin < end:
        last = line_end(codes, begin, end)
        first, stop = stripped(flags, begin, last)
        all_lines += 1
        if first < stop:
            lines += 1
            bullets += codes[first] == HYPHEN or codes[first] == BULLET
            ellipses += ends_with_ellipsis(codes, first, stop)
            punctuated += flags[last - 1] & LINE_END != 0
            short_lines += last - begin <= short
        begin = last + 1
    return all_lines, bullets, ellipses, lines, punctuated, short_lines


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
    for place in range(begin, end):
        if codes[place] < 128 and PHRASE_BEGINS[codes[place]]:
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
def judge_line(
    codes: Codes, flags: Flags, begin: int, end: int, out: Codes, written: int, rules: Numbers, lorem: bool, curly: bool
) -> tuple[int, int]:
    """Copies a line without its citations to `out`; KEEP or what removes line or document, and where the copy ends."""
    words = longest = length = 0
    first, cited, has_curly = written, begin, False
    for place in range(begin, end):
        length = 0 if flags[place] & SPACE else length + 1
        words += length == 1
        longest = max(longest, length)
        if rules[CITATIONS] > 0:
            cited = max(cited, place + citation_length(codes, place, end))
        if place >= cited:
            out[written] = codes[place]
            has_curly |= codes[place] == CURLY
            written += 1
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
    if curly and has_curly:
        return CURLY_BRACKET, written
    return (POLICY if rules[POLICY] > 0 and found >> 2 else KEEP), written


@bare_kernel
def keep_lines(
    codes: Codes,
    flags: Flags,
    begin: int,
    end: int,
    out: Codes,
    written: int,
    rules: Numbers,
    lorem: bool,
    curly: bool,
    removed: Counts,
) -> tuple[int, int]:
    """Copies the lines that may stay, without the spaces around them, to `out`.

    KEEP and where the copy ends, or LOREM_IPSUM or CURLY_BRACKET. `removed` counts lines by rule.
    """
    start = written
    while begin < end:
        last = line_end(codes, begin, end)
        first, stop = stripped(flags, begin, last)
        verdict, after = judge_line(codes, flags, first, stop, out, written, rules, lorem, curly)
        if verdict < KEEP:
            return verdict, start
        if verdict == KEEP:
            out[after] = NEW_LINE
            written = after + 1
        else:
            removed[verdict] += 1
        begin = last + 1
    return KEEP, written


@bare_kernel
def count_sentences(codes: Codes, flags: Flags, begins: Places, ends: Places, first: int, last: int) -> int:
    """Sentences of all lines: one begins with a line of words, and after a mark that ends one."""
    sentences, ended = 0, False
    for word in range(first, last):
        begin, end = begins[word], ends[word]
        previous = ends[word - 1] if word > first else begin
        new_line = word == first
        for place in range(previous, begin):
            new_line |= codes[place] == NEW_LINE
        gap = begin - previous > 1 or (begin > previous and codes[previous] != 32)
        is_end = end - begin == 1 and flags[begin] & SENTENCE_END != 0
        punctuation = True
        for place in range(begin, end):
            punctuation &= flags[place] & PUNCTUATION != 0
        if new_line or (ended and (gap or not (is_end or punctuation))):
            sentences += 1
            ended = is_end
        else:
            ended |= is_end
    return sentences
