"""Finds the words of a text as spaCy's English tokenizer does, on which the usual quality filters count.

A run of characters between white space is taken apart from both ends, then inside:

    ("Don't  ->  ( " Do n't        10km/h,  ->  10 km/h ,        e.g.  ->  e.g.        well-known  ->  well - known

1. A listed word (english.py) ends the work: `don't` is Do + n't, `e.g.` stays whole.
2. One prefix and one suffix go at a time, such as brackets, quotes, `'s`, units after a digit, a full stop
   after a small letter.
3. What is left stays whole if it is a web address, else it is split at dashes and slashes between letters.
4. Listed words that the rules above took apart, such as the face `):`, are joined again.

Most runs stand in the texts many times: what was found for one is kept by its hash for the next (`Memo`), and a
table of first character, length and last character says at once that a run is no listed word.

A script without spaces between words has no such rules; each of its characters is a word of its own here.
A text is an array of code points and one of their flags (`read_texts`); words are places in it: begin and
end of each, int32.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.clean.english import (
    AFTER_DIGIT,
    AFTER_STOP,
    BEFORE_STOP,
    ENDED_BY_STOP,
    ICON,
    LETTER,
    LISTED_CHARACTERS,
    LONE,
    MARK,
    MOST_PARTS,
    PART_BITS,
    PREFIX,
    PRIME,
    SLOTS,
    SPACE,
    SUFFIX,
    UNIT,
    English,
)
from stages.compiled import bare_kernel, inline_kernel
from stages.utf8 import Bytes, Offsets, decode

Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint16]
Places = npt.NDArray[np.int32]
Rules = npt.NDArray[np.int8]
Gates = npt.NDArray[np.int64]
STOP, HYPHEN, PLUS, DOLLAR, APOSTROPHE, COMMA, AT, COLON, SLASH, UNDERSCORE = (ord(c) for c in ".-+$',@:/_")
LARGE_A, LARGE_C, LARGE_S, LARGE_U, SMALL_S = (ord(c) for c in "ACSUs")
ELLIPSIS, DEGREE, CURLY_APOSTROPHE, EM_DASH, EN_DASH, TILDE = 0x2026, 0xB0, 0x2019, 0x2014, 0x2013, 0x7E
UNIT_CHARACTERS = 8
FIRST_OF_HOST, LAST_OF_HOST = 0xA1, 0xFFFF
PARTS = UNIT - 1
LONGEST_PART = (1 << PART_BITS) - 1
MEMO_SLOTS, MEMO_PRIME = 1 << 14, 0x9E3779B97F4A7C15 - (1 << 64)
PASSED = -1  # the rule of a text that none has dropped


class Memo(NamedTuple):
    """The runs without white space that were taken apart last, because most stand in the texts many times.

    Attributes:
        keys: for each slot the hash of a run, which decides the slot; 0 is a free one.
        parts: the lengths of its words, PART_BITS a word, the first word lowest.
    """

    keys: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]


@bare_kernel
def read_texts(data: Bytes, offsets: Offsets, classes: Flags, codes: Codes, flags: Flags, places: Offsets) -> None:
    """Writes the code points of all texts, the flags of each, and where each text begins among them."""
    count = 0
    for text in range(len(offsets) - 1):
        places[text] = count
        place = offsets[text]
        while place < offsets[text + 1]:
            code, size = decode(data, place)
            codes[count], flags[count] = code, classes[code]
            count += 1
            place += size
    places[len(offsets) - 1] = count


@inline_kernel
def is_digit(code: int) -> bool:
    return 48 <= code <= 57


@inline_kernel
def may_be_listed(codes: Codes, begin: int, end: int, gates: Gates) -> bool:
    """Whether a listed word has this first and last character and this length: a quick no to most."""
    if begin < end <= begin + LISTED_CHARACTERS:
        return gates[codes[begin] & 0xFF, end - begin] >> (codes[end - 1] & 63) & 1 != 0
    return False


@bare_kernel
def listed(codes: Codes, begin: int, end: int, english: English) -> int:
    """The number of the listed word that stands here, or -1; call it where `may_be_listed` says yes."""
    value = 0
    for place in range(begin, end):
        value = (value * PRIME + codes[place]) & (SLOTS - 1)
    while english.slots[value] >= 0:
        number = english.slots[value]
        first = english.offsets[number]
        if english.offsets[number + 1] - first == end - begin:
            same = 0
            while same < end - begin and codes[begin + same] == english.codes[first + same]:
                same += 1
            if same == end - begin:
                return number
        value = (value + 1) & (SLOTS - 1)
    return -1


@inline_kernel
def listed_parts(codes: Codes, begin: int, end: int, english: English) -> int:
    """The lengths of the parts of a listed word; 0 if it is none."""
    number = listed(codes, begin, end, english) if may_be_listed(codes, begin, end, english.gates) else -1
    return english.parts[number] & PARTS if number >= 0 else 0


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


@bare_kernel
def _put_parts(begin: int, parts: int, begins: Places, ends: Places, count: int) -> int:
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
        count = _put_parts(begin, parts, begins, ends, count)
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
                after = _put_parts(start, english.parts[number] & PARTS, begins, ends, place)
                for word in range(last + 1, count):
                    begins[after], ends[after] = begins[word], ends[word]
                    after += 1
                count = after
                break
            last -= 1
    return count


@bare_kernel
def _split_lone(flags: Flags, begins: Places, ends: Places, first: int, count: int) -> int:
    """Makes a word of each character of scripts without spaces, its marks with it."""
    extra = 0
    for word in range(first, count):
        for place in range(begins[word], ends[word]):
            extra += flags[place] & LONE != 0
    extra *= 2
    for word in range(count - 1, first - 1, -1):  # out of the way, to be read from there
        begins[word + extra], ends[word + extra] = begins[word], ends[word]
    written = first
    for word in range(first + extra, count + extra):
        start, end, lone = begins[word], ends[word], False
        for place in range(start, end):
            if place > start and (flags[place] & LONE or lone) and not flags[place] & MARK:
                begins[written], ends[written] = start, place
                start, written = place, written + 1
            lone = flags[place] & LONE != 0 or (lone and flags[place] & MARK != 0)
        begins[written], ends[written] = start, end
        written += 1
    return written


@bare_kernel
def is_simple(codes: Codes, flags: Flags, begin: int, end: int, english: English) -> bool:
    """Whether letters of ASCII and one mark that trails them stand here: the short way to most of what is no word."""
    last = end - 1
    if not flags[last - 1 if codes[last] == STOP else last] & (ENDED_BY_STOP if codes[last] == STOP else SUFFIX):
        return False
    return listed(codes, begin, last, english) < 0


@bare_kernel
def split_run(
    codes: Codes, flags: Flags, first: int, place: int, english: English, begins: Places, ends: Places, count: int
) -> int:
    """Writes the words between two white spaces from `count` on, whatever their script; the number of all then."""
    chunk = count
    count = split_chunk(codes, flags, first, place, english, begins, ends, count)
    if count > chunk + 1:
        count = _join_listed(codes, english, begins, ends, chunk, count)
    for character in range(first, place):
        if flags[character] & LONE:
            return _split_lone(flags, begins, ends, chunk, count)
    return count


@bare_kernel
def packed_parts(begins: Places, ends: Places, first: int, last: int) -> int:
    """The lengths of words, PART_BITS each, the first lowest; 0: they are too many or too long."""
    parts = 0
    if last - first > MOST_PARTS:
        return 0
    for word in range(last - 1, first - 1, -1):
        size = ends[word] - begins[word]
        if size > LONGEST_PART:
            return 0
        parts = parts << PART_BITS | size
    return parts


@bare_kernel
def find_words(
    codes: Codes,
    flags: Flags,
    begin: int,
    end: int,
    english: English,
    memo: Memo,
    begins: Places,
    ends: Places,
    count: int,
) -> int:
    """Writes where the words of a text begin and end from `count` on; how many all are then, or -1: no room."""
    place = begin
    while place < end:
        first, others, value = place, 0, 1
        while place < end and not flags[place] & SPACE:  # to the end of a run without white space
            code = codes[place]
            others += not 97 <= code | 32 <= 122
            value = (value + code) * MEMO_PRIME
            place += 1
        size = place - first
        if size == 0:
            place += 1
            continue
        if count + 3 * size >= len(begins):
            return -1
        if others == 0 and not may_be_listed(codes, first, place, english.gates):
            begins[count], ends[count] = first, place
            count += 1
            continue
        slot = value >> 40 & (len(memo.keys) - 1)
        if memo.keys[slot] == value:
            count = _put_parts(first, memo.parts[slot], begins, ends, count)
            continue
        chunk = count
        count = split_run(codes, flags, first, place, english, begins, ends, count)
        parts = packed_parts(begins, ends, chunk, count)
        if parts:
            memo.keys[slot], memo.parts[slot] = value, parts
    return count


@bare_kernel
def words_of_texts(
    codes: Codes,
    flags: Flags,
    places: Offsets,
    english: English,
    memo: Memo,
    begins: Places,
    ends: Places,
    rules: Rules,
    words: Offsets,
) -> bool:
    """Finds the words of all texts that no rule dropped; those of text n are words[n] to words[n + 1].

    False: no room.
    """
    for slot in range(len(memo.keys)):
        memo.keys[slot] = 0
    count = np.int64(0)  # a plain 0 is a type of its own to numba, which would compile all that takes it twice
    for text in range(len(places) - 1):
        words[text] = count
        if rules[text] == PASSED:
            count = find_words(codes, flags, places[text], places[text + 1], english, memo, begins, ends, count)
            if count < 0 or count + 2 >= len(begins):
                return False
    words[len(places) - 1] = count
    return True


@functools.lru_cache(maxsize=1)
def empty_memo() -> Memo:
    return Memo(np.zeros(MEMO_SLOTS, np.int64), np.zeros(MEMO_SLOTS, np.int64))


def split_texts(texts: list[str], english: English) -> list[list[str]]:
    """The words of texts: what the kernel finds, for tests and tables."""
    whole = "".join(texts)
    codes = np.array([ord(character) for character in whole], np.int32)
    places = np.cumsum([0, *map(len, texts)])
    begins, ends = (np.empty(3 * len(codes) + 64, np.int32) for _ in range(2))
    rules, words = np.full(len(texts), PASSED, np.int8), np.empty(len(texts) + 1, np.int64)
    words_of_texts(codes, english.classes[codes], places, english, empty_memo(), begins, ends, rules, words)
    return [
        [whole[begins[word] : ends[word]] for word in range(first, last)] for first, last in pairwise(words.tolist())
    ]
