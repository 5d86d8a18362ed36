"""The words of a text, normalised and hashed, made from UTF-8 in passes that the processor takes many bytes at a time.

    text    The cat, déjà      what stages/shingles.py calls words: the, cat, déjà
    mapped  the.cat..dÃ©jÃ.    lower case; 0 (here a dot) for what stands in no word of ASCII; other bytes as they are
    edges   0 3 4 7 9 15       where runs of bytes that are not 0 begin and end
    others  4                  which of the edges begin runs that are not all ASCII
    normal  the cat déjà

Runs of ASCII are words as they are. They are copied one after the other, two loads and stores for most, with
no branch that nobody could predict; what the loads gave is kept, and all words of a block are then hashed
in a loop without any order between them, which the compiler turns into vectors. Other runs, few in most languages
of the Latin script, are decoded character by character.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.compiled import bare_kernel, inline_kernel
from stages.eight_bytes import bytes_high, bytes_set, count_ones, first_bytes, load, store, trailing_zeros
from stages.unicode import LETTER, LONE, MARK, NUMBER, tables
from stages.utf8 import Bytes

WORD = LETTER | MARK | NUMBER
BLOCK = 2048
ROOM = 128
LANES = 32
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
ONE, SPACE, UNDERSCORE = np.uint64(1), np.uint64(0x20), np.uint64(0x5F)
LOW_BYTE, LOW_SIX = np.uint64(0xFF), np.uint64(0x3F)
SEED = np.uint64(0x243F6A8885A308D3)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
LENGTH_FACTOR = np.uint64(0xC4CEB9FE1A85EC53)
Hashes = npt.NDArray[np.uint64]


class Room(NamedTuple):
    """What the passes write for each other; made once for many texts.

    Attributes:
        classes, lower: the tables of characters.
        mapped: uint8, the text in lower case.
        edges, others: int64, of a block.
        first, more, sizes: of each word of a block its first 8 bytes, the 8 after them, and its size.
        long: int64, pairs: which words of a block are longer, and where they stand.
    """

    classes: Bytes
    lower: npt.NDArray[np.int32]
    mapped: Bytes
    edges: npt.NDArray[np.int64]
    others: npt.NDArray[np.int64]
    first: Hashes
    more: Hashes
    sizes: Hashes
    long: npt.NDArray[np.int64]


def room_for(n_bytes: int) -> Room:
    """Room for texts of up to so many bytes."""
    mapped, words = np.empty(n_bytes + 2 * ROOM, np.uint8), BLOCK // 2 + 2 * LANES
    edges, others, long = (np.empty(size, np.int64) for size in (BLOCK + 8, BLOCK // 2 + 2, BLOCK // 4))
    first, more, sizes = np.ones((3, words), np.uint64)
    return Room(*tables(), mapped, edges, others, first, more, sizes, long)


def word_room(n_bytes: int) -> Hashes:
    """Room for the hashes of the words of a text of up to so many bytes."""
    return np.empty(n_bytes // 2 + 2 + LANES, np.uint64)  # a word and its end are two bytes or more, but for the last


@inline_kernel
def _absorbed(state: np.uint64, packed: np.uint64) -> np.uint64:
    """The state of a word's hash after up to 8 more of its bytes."""
    state = (state ^ packed) * MULTIPLIER
    return state ^ (state >> np.uint64(32))


@inline_kernel
def _finished(state: np.uint64, n_bytes: np.uint64) -> np.uint64:
    return state ^ (n_bytes * LENGTH_FACTOR)


@bare_kernel
def hash_bytes(data, begin, end):  # type: ignore[no-untyped-def]
    """The hash of a word that stands at data[begin:end], with 8 bytes of room after it."""
    state = SEED
    for place in range(begin, end, 8):
        state = _absorbed(state, first_bytes(load(data, place), min(8, end - place)))
    return _finished(state, np.uint64(end - begin))


@inline_kernel
def _map_ascii(data, mapped):  # type: ignore[no-untyped-def]
    """Of each byte: ASCII that stands in words its lower case, other ASCII 0, any other byte itself; 32 at a time."""
    for place in range(len(data)):
        byte = data[place]
        lower = np.uint8(byte | 0x20) if np.uint8(byte - np.uint8(0x41)) < np.uint8(26) else byte
        is_letter = np.uint8(lower - np.uint8(0x61)) < np.uint8(26)
        is_other = (
            (np.uint8(byte - np.uint8(0x30)) < np.uint8(10)) | (byte == np.uint8(0x5F)) | (byte >= np.uint8(0x80))
        )
        mapped[place] = lower if is_letter | is_other else np.uint8(0)


@bare_kernel
def _find_edges(mapped, begin, end, edges, n_edges, others, n_others):  # type: ignore[no-untyped-def]
    """Adds to edges[n_edges:] where runs of bytes that are not 0 begin and end, in turn; gives the new counts.

    64 bytes at a time: a bit that differs from the one before it is an edge. A run that goes on beyond `end` has no
    end yet.
    """
    inside = np.uint64(n_edges & 1)
    for block in range(begin, end, 64):
        bits = bytes_set(mapped, block)
        found = bits ^ (bits << ONE | inside)
        inside = bits >> np.uint64(63)
        high = bytes_high(mapped, block)
        while high != 0:
            through = high ^ (high - ONE)  # the bits up to the first byte that is not ASCII
            run = n_edges + np.int64(count_ones(found & through)) - 1
            if n_others == 0 or others[n_others - 1] != run:
                others[n_others] = run
                n_others += 1
            after = found & ~through
            high &= ~((after & (~after + ONE)) - ONE)  # what comes after the end of this run, if it ends here
        n_found = np.int64(count_ones(found))
        for at in range(n_edges, n_edges + n_found, 4):  # four at a time: how many there are, nothing could predict
            for k in range(4):
                store(edges, at + k, np.uint64(block) + trailing_zeros(found))
                found &= found - ONE
        n_edges += n_found
    return n_edges, n_others


@bare_kernel
def _copy_runs(room, edge, stop, normal, at):  # type: ignore[no-untyped-def]
    """Copies the runs of ASCII from edges[edge] up to edges[stop]; gives where the copy ends, and how many are long."""
    edges, mapped = room.edges, room.mapped
    n_long = 0
    for word in range((stop - edge) // 2):
        begins = edge + 2 * word
        begin = np.int64(load(edges, begins))
        n_bytes = np.int64(load(edges, begins + 1)) - begin
        first, more = load(mapped, begin), load(mapped, begin + 8)
        store(normal, at, first)
        store(normal, at + 8, more)
        store(room.first, word, first)
        store(room.more, word, more)
        store(room.sizes, word, np.uint64(n_bytes))
        if n_bytes > 16:
            for place in range(16, n_bytes, 8):
                store(normal, at + place, load(mapped, begin + place))
            room.long[n_long], room.long[n_long + 1] = word, at
            n_long += 2
        at += n_bytes
        store(normal, at, SPACE)
        at += 1
    return at, n_long


@bare_kernel
def _hash_runs(first, more, sizes, hashes):  # type: ignore[no-untyped-def]
    """The hashes of words of up to 16 bytes. Their number is a multiple of `LANES`, so that all are done in vectors."""
    for word in range(len(hashes) // LANES * LANES):
        size = sizes[word]
        once = _absorbed(SEED, first[word] & (ALL >> (np.uint64(64) - np.uint64(8) * min(size, np.uint64(8)))))
        rest = max(min(size, np.uint64(16)), np.uint64(9)) - np.uint64(8)
        twice = _absorbed(once, more[word] & (ALL >> (np.uint64(64) - np.uint64(8) * rest)))
        hashes[word] = _finished(twice if size > np.uint64(8) else once, size)


@inline_kernel
def _decode(packed: np.uint64) -> tuple[np.uint64, int]:
    """The code point that these bytes begin with, and the number of its own."""
    first, second = packed & LOW_BYTE, packed >> np.uint64(8) & LOW_SIX
    if first < np.uint64(0x80):
        return first, 1
    if first < np.uint64(0xE0):
        return (first & np.uint64(0x1F)) << np.uint64(6) | second, 2
    third = packed >> np.uint64(16) & LOW_SIX
    if first < np.uint64(0xF0):
        return (first & np.uint64(0x0F)) << np.uint64(12) | second << np.uint64(6) | third, 3
    fourth = packed >> np.uint64(24) & LOW_SIX
    return (first & np.uint64(0x07)) << np.uint64(18) | second << np.uint64(12) | third << np.uint64(6) | fourth, 4


@inline_kernel
def _encode(code: np.uint64) -> tuple[np.uint64, int]:
    """The bytes of a code point, and their number."""
    last = np.uint64(0x80) | code & LOW_SIX
    if code < np.uint64(0x80):
        return code, 1
    if code < np.uint64(0x800):
        return np.uint64(0xC0) | code >> np.uint64(6) | last << np.uint64(8), 2
    middle = np.uint64(0x80) | code >> np.uint64(6) & LOW_SIX
    if code < np.uint64(0x10000):
        return np.uint64(0xE0) | code >> np.uint64(12) | middle << np.uint64(8) | last << np.uint64(16), 3
    high = np.uint64(0x80) | code >> np.uint64(12) & LOW_SIX
    first = np.uint64(0xF0) | code >> np.uint64(18)
    return first | high << np.uint64(8) | middle << np.uint64(16) | last << np.uint64(24), 4


@bare_kernel
def _add_other_run(mapped, begin, end, classes, lower, normal, at, hashes, count):  # type: ignore[no-untyped-def]
    """Adds the words of mapped[begin:end], for any characters: none, one or more; gives the new `at` and `count`."""
    first, place = at, begin
    lone = False
    while place < end:
        packed = load(mapped, place)
        code, width = _decode(packed)
        place += width
        flags = classes[code]
        is_word = flags & WORD != 0 or code == UNDERSCORE
        begins = flags & LONE != 0 and flags & (LETTER | NUMBER) != 0
        if at > first and (not is_word or begins or (lone and flags & MARK == 0)):
            hashes[count] = hash_bytes(normal, first, at)
            count += 1
            store(normal, at, SPACE)
            at += 1
            first, lone = at, False
        if is_word:
            lone = lone or begins
            small = np.uint64(lower[code])
            if small != code:
                packed, width = _encode(small)
            store(normal, at, packed)
            at += width
    if at > first:
        hashes[count] = hash_bytes(normal, first, at)
        count += 1
        store(normal, at, SPACE)
        at += 1
    return at, count


@bare_kernel
def _add_runs(room, edge, stop, normal, at, hashes, count):  # type: ignore[no-untyped-def]
    """Adds the runs of ASCII from edges[edge] up to edges[stop] as words; gives the new `at` and `count`."""
    n_words = (stop - edge) // 2
    at, n_long = _copy_runs(room, edge, stop, normal, at)
    _hash_runs(room.first, room.more, room.sizes, hashes[count : count + n_words + LANES - 1])
    for place in range(0, n_long, 2):
        word, begin = room.long[place], room.long[place + 1]
        hashes[count + word] = hash_bytes(normal, begin, begin + np.int64(room.sizes[word]))
    return at, count + n_words


@bare_kernel
def add_words(data, begin, end, room, normal, at, hashes):  # type: ignore[no-untyped-def]
    """Writes the normalised text of data[begin:end] to normal[at:] and the hashes of its words; gives the end of the
    first and the number of the second.

    A text without a word is its own text, and one word. `hashes` has room for `LANES` more than there can be.
    """
    n_bytes, first, count = end - begin, at, 0
    edges, others = room.edges, room.others
    _map_ascii(data[begin:end], room.mapped)
    room.mapped[n_bytes : n_bytes + ROOM] = 0
    n_edges = n_others = 0
    for block in range(0, n_bytes + 1, BLOCK):  # the byte after the text ends its last run
        stop = min(block + BLOCK, n_bytes + 1)
        n_edges, n_others = _find_edges(room.mapped, block, stop, edges, n_edges, others, n_others)
        edge, whole = 0, n_edges & -2
        for place in range(n_others):
            if others[place] < whole:
                run = others[place]
                if edge < run:
                    at, count = _add_runs(room, edge, run, normal, at, hashes, count)
                at, count = _add_other_run(
                    room.mapped, edges[run], edges[run + 1], room.classes, room.lower, normal, at, hashes, count
                )
                edge = run + 2
        at, count = _add_runs(room, edge, whole, normal, at, hashes, count)
        others[0], n_others = 0, np.int64(n_others > 0 and others[n_others - 1] == whole)
        edges[0], n_edges = edges[n_edges - 1], n_edges & 1  # of a run that has no end yet
    if count:
        return at - 1, count  # no space after the last word
    for place in range(begin, end):
        normal[at] = data[place]
        at += 1
    hashes[0] = hash_bytes(normal, first, at)
    return at, 1
