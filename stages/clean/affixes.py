"""What leads, trails or separates a word and is none of it, by the characters there.

    ("  of ("Don't         prefix       's , ) .   of it's, (so).     suffix
    km  of 10km            counted      -  /  ...  of well-known      infix

Each function gives a length, 0 for nothing. Whoever takes a run apart (runs.py) asks in which order.
"""

from __future__ import annotations

from stages.clean.code_points import (
    APOSTROPHE,
    COLON,
    COMMA,
    CURLY_APOSTROPHE,
    DEGREE,
    DOLLAR,
    ELLIPSIS,
    EM_DASH,
    EN_DASH,
    HYPHEN,
    LARGE_A,
    LARGE_C,
    LARGE_S,
    LARGE_U,
    PLUS,
    SLASH,
    SMALL_S,
    STOP,
    TILDE,
    Codes,
    Flags,
    is_digit,
)
from stages.clean.english import (
    AFTER_DIGIT,
    AFTER_STOP,
    BEFORE_STOP,
    ENDED_BY_STOP,
    ICON,
    LETTER,
    PREFIX,
    SUFFIX,
    UNIT,
    English,
    listed,
    may_be_listed,
)
from stages.compiled import bare_kernel

UNIT_CHARACTERS = 8


@bare_kernel
def prefix_length(codes: Codes, flags: Flags, begin: int, end: int) -> int:
    """The length of what leads the word and is none of it."""
    code = codes[begin]
    if flags[begin] & PREFIX:
        return 0 if code == PLUS and begin + 1 < end and is_digit(codes[begin + 1]) else 1
    if code == STOP:
        place = begin
        while place < end and codes[place] == STOP:
            place += 1
        return place - begin if place - begin > 1 else 0
    if (code in (LARGE_A, LARGE_C)) and begin + 1 < end and codes[begin + 1] == DOLLAR:
        return 2
    if code == LARGE_U and begin + 2 < end and codes[begin + 1] == LARGE_S and codes[begin + 2] == DOLLAR:
        return 3
    return 0


@bare_kernel
def suffix_length(codes: Codes, flags: Flags, begin: int, end: int) -> int:
    """The length of what trails the word and is none of it, but for what follows a digit."""
    last = end - 1
    code, previous = codes[last], codes[last - 1] if last > begin else 0
    if code == STOP:
        place = last
        while place > begin and codes[place - 1] == STOP:
            place -= 1
        if last - place > 0:
            return end - place
        before = flags[last - 1] if last > begin else 0
        ended = before & ENDED_BY_STOP != 0
        if last - 1 > begin:  # two large letters, or a degree
            ended |= before & flags[last - 2] & LETTER != 0 and before & flags[last - 2] & AFTER_STOP != 0
            ended |= codes[last - 2] == DEGREE and (previous == 67 or previous == 70 or previous == 75)  # C F K
        return 1 if ended else 0
    if flags[last] & SUFFIX:
        return 2 if code == ELLIPSIS and previous == ELLIPSIS else 1
    return 2 if (code in (SMALL_S, LARGE_S)) and (previous in (APOSTROPHE, CURLY_APOSTROPHE)) else 0


@bare_kernel
def counted_length(codes: Codes, flags: Flags, begin: int, end: int, english: English) -> int:
    """The length of a unit, a currency or a plus that trails a digit."""
    last = end - 1
    code, place = codes[last], end - 1
    while place > begin and end - place < UNIT_CHARACTERS and not is_digit(codes[place - 1]):
        place -= 1
    if place == begin or not is_digit(codes[place - 1]):
        return 0
    size = end - place
    number = listed(codes, place, end, english) if may_be_listed(codes, place, end, english.gates) else -1
    if number >= 0 and english.parts[number] & UNIT:
        return size
    if size == 1 and (code == PLUS or flags[last] & AFTER_DIGIT):
        return 1
    return size if code == DOLLAR and size == prefix_length(codes, flags, place, end) else 0


@bare_kernel
def infix_length(codes: Codes, flags: Flags, begin: int, place: int, end: int) -> int:
    """The length of what separates two words at `place`, such as the dash of well-known."""
    code = codes[place]
    if code == STOP and place + 1 < end and codes[place + 1] == STOP:
        after = place
        while after < end and codes[after] == STOP:
            after += 1
        return after - place
    if code == ELLIPSIS or flags[place] & ICON:
        return 1
    if place == begin or place + 1 >= end:
        return 0
    left, right, following = flags[place - 1], flags[place + 1], codes[place + 1]
    if code == STOP:
        return 1 if left & BEFORE_STOP != 0 and right & AFTER_STOP != 0 else 0
    if code == COMMA:
        return 1 if left & right & LETTER != 0 else 0
    digit = is_digit(codes[place - 1])
    counted = is_digit(following) or following == HYPHEN
    if digit and counted and code in (PLUS, HYPHEN, 42, 94):  # + - * ^
        return 1
    if not digit and not left & LETTER:
        return 0
    if code in (COLON, SLASH, EN_DASH, TILDE) or 60 <= code <= 62:  # < = >
        return 1 if right & LETTER != 0 else 0
    if code in (HYPHEN, EM_DASH):
        after = place + 1
        while after < end and codes[after] == code and after - place < (3 if code == HYPHEN else 2):
            after += 1
        if after < end and flags[after] & LETTER:
            return after - place
    return 0
