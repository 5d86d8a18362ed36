"""English for the search for words: a class for every character, and words that its rules would split wrongly.

english.txt holds it as measured on spaCy 3.8's English tokenizer, which the filters of datatrove use and
FineWeb was made with:

    one Mr. e.g. :-) C++           stay whole
    ends 'd 've : He I they        He'd've is He + 'd + 've, also with a curly apostrophe
    unit km MB                     5km is 5 + km
    class 0021 0021 psbetw         "!" leads (p) and trails (s) a word, ends a sentence (e), and so on

Compiled kernels take `English` as one argument: arrays, with the words in a table of hashes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages import unicode
from stages.clean.code_points import Codes
from stages.compiled import bare_kernel, inline_kernel

# english.txt; part of the code's fingerprint, because a change of the file changes verdicts.
ENGLISH_SHA256 = "03f14400daec82f00b576744caefe25a2a9e485ef0e0b1256793545d74627521"

PREFIX, SUFFIX, LETTER, BEFORE_STOP, AFTER_STOP, ENDED_BY_STOP, ICON, AFTER_DIGIT = (1 << bit for bit in range(8))
SENTENCE_END, LINE_END, SYMBOL, SPACE, ALPHABETIC, PUNCTUATION = (1 << bit for bit in range(8, 14))
CLASSES = dict(
    zip(
        "psalubicetw",
        (
            PREFIX,
            SUFFIX,
            LETTER,
            BEFORE_STOP,
            AFTER_STOP,
            ENDED_BY_STOP,
            ICON,
            AFTER_DIGIT,
            SENTENCE_END,
            LINE_END,
            SYMBOL,
        ),
        strict=True,
    )
)
OF_UNICODE = {
    unicode.SPACE: SPACE,
    unicode.LETTER: ALPHABETIC,
    unicode.PUNCTUATION: PUNCTUATION,
}
SLOTS = 1 << 13
PRIME, LISTED_CHARACTERS = 0x01000193, 15
PART_BITS, MOST_PARTS = 8, 7
UNIT = 1 << 62
PARTS = UNIT - 1
Gates = npt.NDArray[np.int64]


class English(NamedTuple):
    """Attributes:
    classes: uint16[0x110000], flags of each code point.
    slots: int32[SLOTS], a table of the listed words by hash: their number, or -1.
    codes, offsets: their characters, end to end.
    parts: for each the lengths of its parts, 8 bits a part, the first part lowest; none for what is only a unit.
        The bit UNIT says that it is a unit.
    patterns: the same for the parts that the rules alone would make of it; 0 where those are no others.
    gates: int64[256, 16], for a first character (its lowest byte) and a length a bit for each last character (its
        lowest 6 bits) that a listed word has.
    """

    classes: npt.NDArray[np.uint16]
    slots: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int64]
    patterns: npt.NDArray[np.int64]
    gates: Gates


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


def lines() -> Iterator[tuple[str, list[str]]]:
    """The entries of english.txt: what a line begins with, and the rest of its words."""
    for line in Path(__file__).with_name("english.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, *rest = line.split()
            yield kind, rest


def character_classes() -> npt.NDArray[np.uint16]:
    of_unicode, _ = unicode.tables()
    classes = np.zeros(unicode.N_CODE_POINTS, np.uint16)
    for flag, ours in OF_UNICODE.items():
        classes[(of_unicode & flag) != 0] |= ours
    classes[0x1C:0x20] |= SPACE  # separators of files, records and units: spaces to Python, not to Unicode
    for kind, rest in lines():
        if kind == "class":
            first, last, letters = rest
            classes[int(first, 16) : int(last, 16) + 1] |= sum(CLASSES[letter] for letter in letters)
    return classes


def listed_words() -> dict[str, tuple[str, ...]]:
    """Words and the parts they consist of."""
    found: dict[str, tuple[str, ...]] = {}
    for kind, rest in lines():
        if kind == "one":
            words: list[tuple[str, ...]] = [(word,) for word in rest]
        elif kind == "ends":
            place = rest.index(":")
            words = [(first, *rest[:place]) for first in rest[place + 1 :]]
        else:
            continue
        for parts in words:
            curly = tuple(part.replace("'", "\u2019") for part in parts)
            found["".join(curly)] = curly
            found["".join(parts)] = parts
    return found


def units() -> list[str]:
    return [unit for kind, rest in lines() if kind == "unit" for unit in rest]


def _packed(parts: tuple[str, ...]) -> int:
    return sum(len(part) << PART_BITS * place for place, part in enumerate(parts))


def slot_of(word: str) -> int:
    """Where the search for a word begins; `listed` computes the same."""
    value = 0
    for character in word:
        value = (value * PRIME + ord(character)) & (SLOTS - 1)
    return value


def table(words: dict[str, tuple[str, ...]], patterns: dict[str, tuple[str, ...]]) -> English:
    """The arrays for these words; `patterns` names those that the rules alone would split into other parts."""
    entries = {word: _packed(parts) for word, parts in sorted(words.items())}
    for unit in units():
        entries[unit] = entries.get(unit, 0) | UNIT
    slots = np.full(SLOTS, -1, np.int32)
    gates = np.zeros((256, LISTED_CHARACTERS + 1), np.uint64)
    for number, word in enumerate(entries):
        slot = slot_of(word)
        while slots[slot] >= 0:
            slot = (slot + 1) % SLOTS
        slots[slot] = number
        gates[ord(word[0]) & 0xFF, len(word)] |= np.uint64(1 << (ord(word[-1]) & 63))
    return English(
        character_classes(),
        slots,
        np.array([ord(character) for word in entries for character in word], np.int32),
        np.cumsum([0, *map(len, entries)]).astype(np.int32),
        np.array(list(entries.values()), np.int64),
        np.array([_packed(patterns.get(word, ())) for word in entries], np.int64),
        gates.view(np.int64),
    )


@functools.lru_cache(maxsize=1)
def english() -> English:
    """All that english.txt says."""
    from stages.clean.words import split_texts

    words = listed_words()
    alone = table({}, {})
    patterns = {word: tuple(parts) for word, parts in zip(words, split_texts(list(words), alone), strict=True)}
    different = {
        word: pattern for word, pattern in patterns.items() if 1 < len(pattern) <= MOST_PARTS and pattern != words[word]
    }
    return table(words, different)
