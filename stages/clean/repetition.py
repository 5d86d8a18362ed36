"""How much of a text repeats: kernels over hashes of words, lines and paragraphs.

    a b a b a c    pairs: a b (2), b a (2), a c    the first of the most frequent: a b
    one line / two lines / one line                3 parts, 1 of them repeated, of 8 characters

Counting is needed only where something may occur twice. Three words in a row do so only where their first two and
their last two do; five or more only where the 16 characters that stand there do, which one pass notes for all
sizes. The measures are exact: what is left out occurs once.

Texts are compared by 64-bit hashes: the polynomial of their characters, so that the hash of several words in a
row follows from the hashes up to their ends, and mixed before it finds a place in a table. Two different
texts of one document have equal hashes once in 10^19 times (or if somebody made them so).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from stages.clean.code_points import Codes, Places
from stages.clean.words import BASE, LETTERS, PLAIN, Hashes, Words, room_for_words
from stages.compiled import bare_kernel, inline_kernel

NEW_LINE = 10
ONE, TWO, THREE, FOUR = (np.uint64(number) for number in range(1, 5))  # steps between places without a sign
WINDOW = 16  # characters by whose hash n-grams that occur once are told
POWERS = np.cumprod(np.full(1024, BASE, np.uint64), dtype=np.uint64) * np.uint64(0xF1DE83E19937733D)  # BASE ** index


class Room(NamedTuple):
    """Working arrays; a kernel that needs larger ones says -1 or False.

    Attributes:
        words: those of some documents.
        kept: the same in the lines that rules on lines left.
        sums, lengths: of one document, the hash and the number of the characters of the words before each.
        grams: the hash of the n-gram that begins at each.
        places, slots: of some n-grams the first word, and where in the table they are.
        keys, counts: a table by hash for one document; a key of 0 is a free slot.
    """

    words: Words
    kept: Words
    sums: Hashes
    lengths: Places
    grams: Hashes
    places: Places
    slots: Places
    keys: Hashes
    counts: Places


@functools.lru_cache(maxsize=2)
def room(n_words: int) -> Room:
    """Working arrays for fewer words than the power of two `n_words`; the same ones again if asked again, because
    fresh memory costs more than what is computed in it."""
    lengths, places, slots = (np.empty(n_words, np.int32) for _ in range(3))
    sums, grams, keys = (np.empty(size, np.uint64) for size in (n_words, n_words, 2 * n_words))
    words, kept = room_for_words(n_words), room_for_words(n_words)
    return Room(words, kept, sums, lengths, grams, places, slots, keys, np.empty(2 * n_words, np.int32))


def grown(small: Room) -> Room:
    """Twice the room, with the words that are there."""
    large = room(2 * len(small.sums))
    for new, old in ((large.words, small.words), (large.kept, small.kept)):
        new.begins[: len(old.begins)], new.ends[: len(old.ends)] = old.begins, old.ends
        new.hashes[: len(old.hashes)], new.kinds[: len(old.kinds)] = old.hashes, old.kinds
    return large


@inline_kernel
def mixed(value: np.uint64) -> np.uint64:
    """A hash whose every bit depends on every bit; never 0."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) | np.uint64(1 << 63)


@bare_kernel
def power(exponent: int) -> np.uint64:
    """BASE ** exponent, modulo 2^64."""
    if exponent < len(POWERS):
        return POWERS[exponent]
    result, factor = np.uint64(1), np.uint64(BASE)
    while exponent:
        if exponent & 1:
            result *= factor
        factor *= factor
        exponent >>= 1
    return result


@bare_kernel
def table_mask(n_entries: int, room: Room) -> int:
    """Empties a table for so many entries and gives its size less one."""
    size = 16
    while size < 2 * n_entries:
        size *= 2
    for slot in range(size):
        room.keys[slot] = 0
    return size - 1


@bare_kernel
def seen(key: np.uint64, mask: int, keys: Hashes) -> bool:
    """Whether the table holds the key; from now on it does."""
    slot = np.int64(key & np.uint64(mask))
    while keys[slot]:
        if keys[slot] == key:
            return True
        slot = (slot + 1) & mask
    keys[slot] = key
    return False


@bare_kernel
def repeated_parts(codes: Codes, begin: int, end: int, breaks: int, room: Room) -> tuple[int, int, int]:
    """Parts of a text separated by `breaks` line ends or more: all, those that stood before, characters of these."""
    n_parts = 1
    for at in range(np.uint64(begin), np.uint64(end)):
        n_parts += codes[at] == NEW_LINE
    if 4 * n_parts > len(room.keys):
        return -1, 0, 0
    mask = table_mask(n_parts, room)
    parts = repeated = characters = 0
    place = begin
    while place <= end:
        value, first, ends = np.uint64(0), place, 0
        while place < end:
            place, value = hash_line(codes, place, end, value)
            ends = 0
            while place + ends < end and codes[place + ends] == NEW_LINE:
                ends += 1
            if ends >= breaks:
                break
            for _ in range(ends):
                value = value * BASE + np.uint64(NEW_LINE)
            place += ends
        parts += 1
        if seen(mixed(value + np.uint64(place - first)), mask, room.keys):
            repeated += 1
            characters += place - first
        if place >= end:
            break
        place += ends
    return parts, repeated, characters


@bare_kernel
def hash_line(codes: Codes, begin: int, end: int, value: np.uint64) -> tuple[int, np.uint64]:
    """Continues a hash up to the next line end, four characters a step; where that is, and the hash."""
    place, last = np.uint64(begin), np.uint64(end)
    while place + FOUR <= last:
        one, two, three, four = codes[place], codes[place + ONE], codes[place + TWO], codes[place + THREE]
        if one == NEW_LINE or two == NEW_LINE or three == NEW_LINE or four == NEW_LINE:
            break
        value *= POWERS[4]
        value += (
            np.uint64(one) * POWERS[3] + np.uint64(two) * POWERS[2] + np.uint64(three) * POWERS[1] + np.uint64(four)
        )
        place += FOUR
    while place < last and codes[place] != NEW_LINE:
        value = value * BASE + np.uint64(codes[place])
        place += ONE
    return np.int64(place), value  # type: ignore[return-value]


@bare_kernel
def sum_words(words: Words, first: int, last: int, stop_words: Hashes, room: Room) -> tuple[int, int, int, int]:
    """Fills `sums`, `lengths` and `grams` for the words of a document; counts words that are not all symbols, their
    characters, words with a letter, and how many of `stop_words` (their hashes, at most 64) occur."""
    total = found = gate = np.uint64(0)
    for number in range(len(stop_words)):
        gate |= np.uint64(1) << (stop_words[number] & np.uint64(63))
    n_plain = plain_characters = n_alphabetic = characters = 0
    for word in range(first, last):
        value, size, kinds = words.hashes[word], np.int64(words.ends[word]) - words.begins[word], words.kinds[word]
        room.sums[word - first], room.lengths[word - first], room.grams[word - first] = total, characters, value
        characters += size
        total = total * power(size) + value
        plain = kinds & PLAIN != 0
        n_plain += plain
        plain_characters += plain * size
        n_alphabetic += kinds & LETTERS != 0
        if gate >> (value & np.uint64(63)) & np.uint64(1):
            for number in range(len(stop_words)):
                if stop_words[number] == value:
                    found |= np.uint64(1) << np.uint64(number)
    room.sums[last - first], room.lengths[last - first] = total, characters
    n_stop_words = 0
    while found:
        n_stop_words += 1
        found &= found - np.uint64(1)
    return n_plain, plain_characters, n_alphabetic, n_stop_words


@bare_kernel
def top_ngram(n: int, n_words: int, n_repeated: int, room: Room) -> tuple[int, int, int]:
    """The characters of the most frequent n-gram, words joined by a space, the first of equals; how often it occurs;
    how many places have an n-gram that occurs twice.

    Call it after sum_words for 2, 3 and 4 in this order, with what the last call gave: only where n - 1 words
    occur twice, n may do so. `room.places` holds these places, -1 at first: all.
    """
    positions = n_words - n + 1
    if positions <= 0:
        return 0, 0, 0
    n_places = positions if n_repeated < 0 else n_repeated
    mask, candidates, most = table_mask(n_places, room), 0, 0
    for number in range(n_places):
        word = number
        if n_repeated >= 0:
            word = room.places[number]
            if number + 1 == n_repeated or room.places[number + 1] != word + 1:  # what follows it occurs once
                continue
        following = word + n - 1
        size = room.lengths[following + 1] - room.lengths[following]
        value = room.sums[following + 1] - room.sums[following] * power(size)
        key = mixed(room.grams[word] * BASE + value + np.uint64(size))
        room.grams[word] = key
        slot = np.int64(key & np.uint64(mask))
        while room.keys[slot] and room.keys[slot] != key:
            slot = (slot + 1) & mask
        if room.keys[slot] == 0:
            room.keys[slot], room.counts[slot] = key, 0
        room.counts[slot] += 1
        most = max(most, room.counts[slot])
        room.places[candidates], room.slots[candidates] = word, slot
        candidates += 1
    if most < 2:
        return room.lengths[n] + n - 1, 1, 0
    top, n_repeated = -1, 0
    for number in range(candidates):
        count = room.counts[room.slots[number]]
        if count == most and top < 0:
            top = room.places[number]
        room.places[n_repeated] = room.places[number]
        n_repeated += count > 1
    return room.lengths[top + n] - room.lengths[top] + n - 1, most, n_repeated


@bare_kernel
def mark_repeated(codes: Codes, words: Words, first: int, last: int, n: int, room: Room) -> int:
    """Notes in `places` the words from which on n or more words may occur twice; how many these are.

    That is where the next WINDOW characters, white space left out, do so by a hash (then `grams` is not 0), or
    where n words have fewer.
    """
    mask = 16
    while mask < 4 * (last - first):
        mask *= 2
    seen_times = room.keys.view(np.uint8)
    for slot in range(mask):
        seen_times[slot] = 0
    near = far = np.uint64(0)  # a byte a character, the first one lowest
    for word in range(last - 1, first - 1, -1):
        place, begin = np.uint64(words.ends[word]), np.uint64(words.begins[word])
        while place > begin:
            place -= ONE
            far = far << np.uint64(8) | near >> np.uint64(56)
            near = near << np.uint64(8) | np.uint64(codes[place] & 0xFF)
        slot = np.int64(mixed(near + far * BASE) & np.uint64(mask - 1))  # type: ignore[assignment]
        seen_times[slot] = min(2, seen_times[slot] + 1)
        room.places[word - first] = slot
    marked = 0
    for word in range(last - first - n + 1):
        twice = seen_times[room.places[word]] > 1
        if twice or room.lengths[word + n] - room.lengths[word] < WINDOW:
            room.grams[word] = twice
            room.places[marked] = word
            marked += 1
    return marked


@bare_kernel
def repeated_ngrams(n: int, n_words: int, marked: int, room: Room) -> int:
    """Characters of n-grams that stood before; words are joined without a space, and one n-gram at a time counts.

    Call it after mark_repeated, with what that gave.
    """
    mask = table_mask(marked, room)
    characters = following = 0
    for number in range(marked):
        word = room.places[number]
        if word < following or word + n > n_words:
            continue
        size = room.lengths[word + n] - room.lengths[word]
        if room.grams[word] or size < WINDOW:
            value = room.sums[word + n] - room.sums[word] * power(size)
            if seen(mixed(value + np.uint64(size)), mask, room.keys):
                characters += size
                following = word + n
    return characters
