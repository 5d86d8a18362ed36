"""Cuts text into pre-tokens, the pieces within which byte-level BPE merges, as Hugging Face tokenizers do.

Their regular expressions backtrack over every character; here one look at the character and at the next
one decides, straight on the bytes of UTF-8. Example, by the rule of GPT-4 with at most three digits:

    "don't panic: 12345\n\n  x"  ->  don | 't | _panic | : | _ | 123 | 45 | \n\n | _ | _x

What is a letter, a number or white space comes from stages/unicode.py, which knows what the regular
expressions know. The patterns themselves stand in stages/pretoken_rules.py.
"""

from __future__ import annotations

from stages.compiled import inline_kernel, inner_kernel
from stages.pretoken_rules import CHARACTERS, GPT2, GPT4
from stages.unicode import LETTER, NUMBER, SPACE, Classes
from stages.utf8 import Bytes, decode

LINE_FEED, CARRIAGE_RETURN, BLANK, APOSTROPHE = 10, 13, 32, 39
LONG_S = 0x17F  # the one character beside s and S that equals s where case does not count
KIND = LETTER | NUMBER | SPACE


@inline_kernel
def kind_at(data: Bytes, place: int, classes: Classes) -> tuple[int, int]:
    """LETTER, NUMBER, SPACE or 0 for the character that begins at `place`, and the number of its bytes."""
    if data[place] < 0x80:
        return classes[data[place]] & KIND, 1
    point, width = decode(data, place)
    return classes[point] & KIND, width


@inner_kernel
def run_end(data: Bytes, place: int, end: int, classes: Classes, kind: int, limit: int) -> int:
    """Where the characters of a kind end, after `limit` of them at the latest."""
    while place < end and limit > 0:
        found, width = kind_at(data, place, classes)
        if found != kind:
            break
        place += width
        limit -= 1
    return place


@inline_kernel
def pretoken_end(data: Bytes, place: int, end: int, classes: Classes, style: int, max_digits: int) -> int:
    """Where the pre-token ends that begins at `place`, in a text that ends at `end`.

    Most are a word of ASCII with a space before it or none, so these are looked for first.
    """
    after = place
    if style != CHARACTERS:
        if data[after] == BLANK and after + 1 < end:
            after += 1
        if data[after] < 0x80 and classes[data[after]] & LETTER:
            after += 1
            while after < end and data[after] < 0x80 and classes[data[after]] & LETTER:
                after += 1
            if after == end or data[after] < 0x80:
                return after
            return run_end(data, after, end, classes, LETTER, end)
    return any_pretoken_end(data, place, end, classes, style, max_digits)


@inner_kernel
def any_pretoken_end(data: Bytes, place: int, end: int, classes: Classes, style: int, max_digits: int) -> int:
    """`pretoken_end`, whatever it begins with."""
    first = data[place]
    kind, width = kind_at(data, place, classes)
    after = place + width
    if style == CHARACTERS:
        return after
    if first == APOSTROPHE:
        length = contraction(data, after, end, style)
        if length:
            return after + length
    if kind == LETTER:
        return run_end(data, after, end, classes, LETTER, end)
    line_end = first in (LINE_FEED, CARRIAGE_RETURN)
    if kind == NUMBER:
        limit = max_digits - 1 if style == GPT4 else end
        return run_end(data, after, end, classes, NUMBER, limit)
    if after < end and not line_end and (style == GPT4 or first == BLANK):
        following, width = kind_at(data, after, classes)
        if following == LETTER or (following == NUMBER and style == GPT2):
            return run_end(data, after + width, end, classes, following, end)
        if first == BLANK and following == 0:
            kind = 0
    if kind == 0:
        after = run_end(data, after, end, classes, 0, end)
        while style == GPT4 and after < end and (data[after] == LINE_FEED or data[after] == CARRIAGE_RETURN):
            after += 1
        return after
    return space_end(data, place, end, classes, style)


@inner_kernel
def space_end(data: Bytes, place: int, end: int, classes: Classes, style: int) -> int:
    """Where a pre-token of white space ends: after the last line end; else before the last character, if a word
    follows that may take it."""
    start, last, line_end = place, place, 0
    while place < end:
        kind, width = kind_at(data, place, classes)
        if kind != SPACE:
            break
        last = place
        place += width
        if style == GPT4 and (data[last] == LINE_FEED or data[last] == CARRIAGE_RETURN):
            line_end = place
    if line_end:
        return line_end
    if place == end or last == start:
        return place
    return last


@inner_kernel
def contraction(data: Bytes, place: int, end: int, style: int) -> int:
    """The bytes of s, t, re, ve, m, ll or d at `place`, which stands behind an apostrophe; else 0."""
    if place >= end:
        return 0
    first = data[place]
    second = data[place + 1] if place + 1 < end else 0
    if style == GPT4:
        if first == LONG_S >> 6 | 0xC0 and second == LONG_S & 0x3F | 0x80:
            return 2
        first, second = lower(first), lower(second)
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return 1
    if (first == ord("r") or first == ord("v")) and second == ord("e"):
        return 2
    if first == ord("l") and second == ord("l"):
        return 2
    return 0


@inline_kernel
def lower(byte: int) -> int:
    """The lower-case letter, of ASCII."""
    return byte + 32 if ord("A") <= byte <= ord("Z") else byte
