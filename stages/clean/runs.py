"""Takes a run of characters between white space apart into words, from both ends, then inside.

    ("Don't  ->  ( " Do n't        10km/h,  ->  10 km/h ,        e.g.  ->  e.g.        well-known  ->  well - known

1. A listed word (english.py) ends the work: `don't` is Do + n't, `e.g.` stays whole.
2. One prefix and one suffix go at a time (affixes.py), such as brackets, quotes, `'s`, units after a digit, a full
   stop after a small letter.
3. What is left stays whole if it is an address (addresses.py), else it is split at dashes and slashes between letters.
4. Listed words that the rules above took apart, such as the face `):`, are joined again.

A script without spaces between words has no such rules: what stands between two spaces or punctuation is a word.
"""

from __future__ import annotations

import numpy as np

from stages.clean.addresses import is_address
from stages.clean.affixes import counted_length, infix_length, prefix_length, suffix_length
from stages.clean.code_points import STOP, Codes, Flags, Places, is_digit
from stages.clean.english import MOST_PARTS, PART_BITS, PARTS, English, listed, listed_parts, may_be_listed
from stages.compiled import bare_kernel


@bare_kernel
def put_parts(begin: int, parts: int, begins: Places, ends: Places, count: int) -> int:
    while parts:
        size = parts & 255
        begins[count], ends[count] = begin, begin + size
        begin += size
        parts >>= PART_BITS
        count += 1
    return count


@bare_kernel
def _split_inside(codes: Codes, flags: Flags, begin: int, end: int, begins: Places, ends: Places, count: int) -> int:
    """What prefixes and suffixes left, if it is no address: words with dashes and slashes between."""
    start = place = begin
    while place < end:
        size = 0
        if not 97 <= codes[place] | 32 <= 122:
            size = infix_length(codes, flags, begin, place, end)
        if size and place != begin:
            if place != start:
                begins[count], ends[count] = start, place
                count += 1
            begins[count], ends[count] = place, place + size
            count += 1
            start = place + size
        place += max(size, 1)
    if start < end:
        begins[count], ends[count] = start, end
        count += 1
    return count


@bare_kernel
def split_chunk(
    codes: Codes, flags: Flags, begin: int, end: int, english: English, begins: Places, ends: Places, count: int
) -> int:
    """Writes the words between two white spaces from `count` on, and gives the number of all words then."""
    suffixes = len(begins)  # those found so far wait at the end of `begins`, the last one lowest
    following, length, parts = end, -1, 0
    digits = stops = False
    for place in range(begin, end):
        digits |= is_digit(codes[place])
        stops |= codes[place] == STOP
    while begin < end and end - begin != length:
        parts = listed_parts(codes, begin, end, english)
        if parts:
            break
        length = end - begin
        prefix = prefix_length(codes, flags, begin, end)
        if prefix:
            begins[count], ends[count] = begin, begin + prefix
            parts = listed_parts(codes, begin + prefix, end, english)
            if parts:
                begin, count = begin + prefix, count + 1
                break
        suffix = 0
        if begin + prefix < end:
            suffix = suffix_length(codes, flags, begin + prefix, end)
            if digits and codes[end - 1] != STOP:
                suffix = max(suffix, counted_length(codes, flags, begin + prefix, end, english))
        if suffix:
            suffixes -= 1
            begins[suffixes] = end - suffix
            end -= suffix
            parts = listed_parts(codes, begin, end, english)
            if parts:
                break
        if prefix:
            begin, count = begin + prefix, count + 1
    if parts:
        count = put_parts(begin, parts, begins, ends, count)
    elif begin < end:
        if stops and is_address(codes, flags, begin, end):
            begins[count], ends[count] = begin, end
            count += 1
        else:
            count = _split_inside(codes, flags, begin, end, begins, ends, count)
    for place in range(suffixes, len(begins)):
        begins[count] = begins[place]
        ends[count] = begins[place + 1] if place + 1 < len(begins) else following
        count += 1
    return count


@bare_kernel
def _join_listed(codes: Codes, english: English, begins: Places, ends: Places, first: int, count: int) -> int:
    """Joins listed words among the words from `first` on that the rules took apart; the number of all words then."""
    for place in range(first, count):
        last = min(count, place + MOST_PARTS) - 1
        while last > place:
            number, start, end = -1, np.int64(begins[place]), np.int64(ends[last])
            if may_be_listed(codes, start, end, english.gates):  # type: ignore[arg-type]  # numba's 64-bit int
                number = listed(codes, start, end, english)
            pattern, word = english.patterns[number] if number >= 0 else 0, place
            matches = pattern != 0
            while pattern and word <= last and pattern & 255 == ends[word] - begins[word]:
                pattern >>= PART_BITS
                word += 1
            if matches and pattern == 0 and word == last + 1:  # never more parts than before
                after = put_parts(start, english.parts[number] & PARTS, begins, ends, place)
                for word in range(last + 1, count):
                    begins[after], ends[after] = begins[word], ends[word]
                    after += 1
                count = after
                break
            last -= 1
    return count


@bare_kernel
def split_run(
    codes: Codes, flags: Flags, first: int, place: int, english: English, begins: Places, ends: Places, count: int
) -> int:
    """Writes the words between two white spaces from `count` on; the number of all then."""
    chunk = count
    count = split_chunk(codes, flags, first, place, english, begins, ends, count)
    return _join_listed(codes, english, begins, ends, chunk, count) if count > chunk + 1 else count
