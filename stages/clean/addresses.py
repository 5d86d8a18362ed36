"""Finds web and mail addresses, which are one word whatever stands in them.

    www.example.com/a-b    ada@b.org    http://localhost.local:80/?q=1    127.0.0.1      addresses
    end.Next    a.b-    e.g.                                                             none

A host is labels with stops between, the last one of small letters, or four numbers below 256; then may come a
port, and a path, a query or a fragment, which may be anything.
"""

from __future__ import annotations

from stages.clean.code_points import AT, COLON, HYPHEN, PLUS, SLASH, STOP, UNDERSCORE, Codes, Flags, is_digit
from stages.clean.english import BEFORE_STOP, LETTER
from stages.compiled import bare_kernel

FIRST_OF_HOST, LAST_OF_HOST = 0xA1, 0xFFFF


@bare_kernel
def is_address(codes: Codes, flags: Flags, begin: int, end: int) -> bool:
    """Whether this is a web or mail address: a host, perhaps with scheme, user, port and path."""
    scheme = True
    if _is_host(codes, flags, begin, end):
        return True
    for place in range(begin + 1, end):
        code = codes[place]
        if code == AT and _is_host(codes, flags, place + 1, end):
            return True
        slashes = code == COLON and place + 3 < end and codes[place + 1] == SLASH and codes[place + 2] == SLASH
        if scheme and slashes and place - begin >= 2 and _is_host(codes, flags, place + 3, end):
            return True
        scheme &= flags[place] & LETTER != 0 or is_digit(code) or code in (PLUS, HYPHEN, STOP, UNDERSCORE)
    return False


@bare_kernel
def _is_host(codes: Codes, flags: Flags, begin: int, end: int) -> bool:
    """Whether a host of two labels or more stands here, the last in small letters, then port and path or nothing."""
    place = label = begin
    stops = small = numbers = value = 0
    while place < end:
        code = codes[place]
        size = place - label
        if code == STOP:
            if (
                size == 0
                or size > 64
                or codes[label] in (HYPHEN, UNDERSCORE)
                or codes[place - 1] in (HYPHEN, UNDERSCORE)
            ):
                return False
            numbers += 0 <= value < 256 and size <= 3
            stops, small, value, label = stops + 1, 0, 0, place + 1
        elif is_digit(code):
            value = value * 10 + code - 48 if 0 <= value < 256 else -1
        elif 97 <= code | 32 <= 122 or FIRST_OF_HOST <= code <= LAST_OF_HOST or code in (HYPHEN, UNDERSCORE):
            small += flags[place] & LETTER != 0 and flags[place] & BEFORE_STOP != 0
            value = -1
        else:
            break
        place += 1
    size = place - label
    numbers += 0 <= value < 256 and 1 <= size <= 3
    if not ((stops > 0 and small == size and 2 <= size <= 63) or (stops == 3 and numbers == 4)):
        return False
    if place < end and codes[place] == COLON:
        first = place + 1
        place = first
        while place < end and is_digit(codes[place]):
            place += 1
        if not 2 <= place - first <= 5:
            return False
    return place == end or codes[place] == SLASH or codes[place] == 63 or codes[place] == 35  # / ? #
