"""What lines, marks and sentences tell about a page: kernels for the rules of Gopher, C4 and FineWeb.

    We use cookies ...    ends with an ellipsis
    - an item             begins with a bullet, ends like no sentence, and has at most 30 characters
    So it is. Is it?      two sentences

Line ends are \\n: the text has been normalised.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.clean.code_points import ELLIPSIS, HYPHEN, STOP, Codes, Flags
from stages.clean.english import LINE_END, PUNCTUATION, SENTENCE_END, SPACE
from stages.clean.repetition import NEW_LINE
from stages.clean.words import Words
from stages.compiled import bare_kernel

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
HASH, BULLET = ord("#"), 0x2022
ONE = np.uint64(1)  # places without a sign: Python's places from the end would be looked for at each step


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
def marks(codes: Codes, begin: int, end: int) -> tuple[int, int]:
    """Hashes and ellipses of a text."""
    hashes = ellipses = triples = 0
    for place in range(np.uint64(begin), np.uint64(end)):
        hashes += codes[place] == HASH
        ellipses += codes[place] == ELLIPSIS
    for place in range(np.uint64(begin), np.uint64(max(end - 2, begin))):
        following = codes[place + ONE] == STOP
        triples += (codes[place] == STOP) & following & (codes[place + ONE + ONE] == STOP)
    if triples:  # mostly none, and the loops above look at several characters at once
        stops = 0
        for place in range(begin, end):
            stops = stops + 1 if codes[place] == STOP else 0
            if stops == 3:
                ellipses += 1
                stops = 0
    return hashes, ellipses


@bare_kernel
def stripped(flags: Flags, begin: int, end: int) -> tuple[int, int]:
    """A stretch of text without the white space around it."""
    while begin < end and flags[begin] & SPACE:
        begin += 1
    while end > begin and flags[end - 1] & SPACE:
        end -= 1
    return begin, end


@bare_kernel
def line_counts(
    codes: Codes, flags: Flags, begin: int, end: int, short: int
) -> tuple[int, int, int, int, int, int, int]:
    """All lines, those that begin with a bullet, those that end with an ellipsis; of the lines with text their
    number, those that end like a sentence, and those of at most `short` characters; and line ends."""
    all_lines = bullets = ellipses = lines = punctuated = short_lines = line_ends = 0
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
        line_ends += last < end
        begin = last + 1
    return all_lines, bullets, ellipses, lines, punctuated, short_lines, line_ends


@bare_kernel
def all_punctuation(flags: Flags, begin: int, end: int) -> bool:
    for place in range(begin, end):  # noqa: SIM110 (numba has no generators)
        if not flags[place] & PUNCTUATION:
            return False
    return True


@bare_kernel
def count_sentences(codes: Codes, flags: Flags, words: Words, first: int, last: int) -> int:
    """Sentences of all lines: one begins with a line of words, and after a mark that ends one."""
    sentences, ended, begins, ends = 0, False, words.begins, words.ends
    for word in range(first, last):
        begin, end = begins[word], ends[word]
        previous = ends[word - 1] if word > first else begin
        new_line = word == first
        for place in range(previous, begin):
            new_line |= codes[place] == NEW_LINE
        gap = begin - previous > 1 or (begin > previous and codes[previous] != 32)
        is_end = end - begin == 1 and flags[begin] & SENTENCE_END != 0
        if new_line or (ended and (gap or not (is_end or all_punctuation(flags, begin, end)))):
            sentences += 1
            ended = is_end
        else:
            ended |= is_end
    return sentences
