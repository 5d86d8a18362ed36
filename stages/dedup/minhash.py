"""MinHash signatures: k numbers whose share of equal places estimates the Jaccard similarity.

Each of k permutations of the 32-bit integers keeps the smallest image of a document's shingles; two
documents agree in a place with probability J (Broder 1997), so the estimate's variance is J(1-J)/k.
Cut into b bands of r places, two documents share a whole band with probability 1-(1-J^r)^b: with 28
bands of 4, 0.44 at J=0.375 and 0.99998 at J=0.75; with FineWeb's 14 of 8, 0.77 at J=0.75.

The permutations are datasketch 2's scheme `affine32`, bit for bit: h -> a*h + b mod 2^32 with odd a,
after the 32-bit finaliser of MurmurHash3. So `datasketch.MinHash(hashvalues=signature, seed=1,
scheme="affine32")` opens a signature, and MinHashLSH takes it.

The inner loop runs over permutations, eight 32-bit lanes at a time with AVX2, and takes eight shingles
a pass, so that loads and stores of a, b and the smallest images are shared: what is left is a multiplication,
an addition and a minimum per lane.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from stages.compiled import bare_kernel, inline_kernel, kernel
from stages.shingles import normal_room, read_only, roll
from stages.utf8 import Bytes, Offsets
from stages.word_hashes import Hashes, add_words, room_for, word_room

SEED = 1
LARGEST = np.uint32(0xFFFFFFFF)
Signatures = npt.NDArray[np.uint32]


@functools.lru_cache
def permutations(n_hashes: int) -> tuple[Signatures, Signatures]:
    """The first so many permutations of the scheme: the factors a and the summands b."""
    generator = np.random.RandomState(SEED)
    a = generator.randint(0, 1 << 31, n_hashes, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, generator.randint(0, 1 << 32, n_hashes, dtype=np.uint32)


def signatures_of(shingles: Hashes, ends: Offsets, n_hashes: int) -> Signatures:
    """uint32[texts, n_hashes] of texts as `shingle_texts` gives them; the low 32 bits of a shingle are used."""
    signatures = np.full((len(ends) - 1, n_hashes), LARGEST)
    _sign_sets(shingles, ends, *permutations(n_hashes), signatures)
    return signatures


def sign_texts(data: Bytes, offsets: Offsets, ngram: int, n_hashes: int) -> tuple[Signatures, Bytes, Offsets]:
    """The signatures of texts given as stages/utf8.py gives them, the normalised texts, and where each of those begins.

    The same as `signatures_of` of `shingle_texts`, without keeping the shingles.
    """
    longest = int(np.diff(offsets).max(initial=0))
    normal, normal_ends = normal_room(offsets), np.zeros(len(offsets), np.int64)
    words, shingles = word_room(longest), word_room(longest)
    signatures = np.full((len(offsets) - 1, n_hashes), LARGEST)
    made = (normal, normal_ends, *permutations(n_hashes), signatures)
    _sign_texts(read_only(data), offsets, room_for(longest), ngram, words, shingles, *made)
    return signatures, normal[: normal_ends[-1]], normal_ends


@inline_kernel
def _mixed(shingle: np.uint64) -> np.uint32:
    value = np.uint32(shingle)
    value = np.uint32((value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    value = np.uint32((value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> np.uint32(16)))


@bare_kernel
def _sign(shingles, begin, end, a, b, smallest):  # type: ignore[no-untyped-def]
    """Lowers `smallest` to the images of shingles[begin:end]."""
    for at in range(begin, end, 8):
        # Beyond the last shingle the last one again, which changes no minimum.
        h0 = _mixed(shingles[at])
        h1 = _mixed(shingles[min(at + 1, end - 1)])
        h2 = _mixed(shingles[min(at + 2, end - 1)])
        h3 = _mixed(shingles[min(at + 3, end - 1)])
        h4 = _mixed(shingles[min(at + 4, end - 1)])
        h5 = _mixed(shingles[min(at + 5, end - 1)])
        h6 = _mixed(shingles[min(at + 6, end - 1)])
        h7 = _mixed(shingles[min(at + 7, end - 1)])
        for k in range(len(a)):
            low = min(np.uint32(a[k] * h0 + b[k]), np.uint32(a[k] * h1 + b[k]))
            low = min(low, min(np.uint32(a[k] * h2 + b[k]), np.uint32(a[k] * h3 + b[k])))
            low = min(low, min(np.uint32(a[k] * h4 + b[k]), np.uint32(a[k] * h5 + b[k])))
            low = min(low, min(np.uint32(a[k] * h6 + b[k]), np.uint32(a[k] * h7 + b[k])))
            smallest[k] = min(smallest[k], low)


@bare_kernel
def _sign_sets(shingles, ends, a, b, signatures):  # type: ignore[no-untyped-def]
    for text in range(len(ends) - 1):
        _sign(shingles, ends[text], ends[text + 1], a, b, signatures[text])


@bare_kernel
def _sign_texts(data, offsets, room, ngram, hashes, shingles, normal, normal_ends, a, b, signatures):  # type: ignore[no-untyped-def]
    """Fills all after `shingles` but a and b. A text's shingles give way to the next one's, in the cache."""
    at = 0
    for text in range(len(offsets) - 1):
        at, n_words = add_words(data, offsets[text], offsets[text + 1], room, normal, at, hashes)
        _sign(shingles, 0, roll(hashes, n_words, ngram, shingles), a, b, signatures[text])
        normal_ends[text + 1] = at


@kernel
def estimates(signatures, first, second):  # type: ignore[no-untyped-def]
    """The estimated Jaccard similarity of each pair of rows (first[i], second[i]): float32[n]."""
    n_hashes = signatures.shape[1]
    estimated = np.empty(len(first), np.float32)
    for pair in range(len(first)):
        one, other = signatures[first[pair]], signatures[second[pair]]
        equal = np.uint32(0)
        for k in range(n_hashes):
            equal += np.uint32(one[k] == other[k])
        estimated[pair] = np.float32(equal) / np.float32(n_hashes)
    return estimated


def band_keys(signatures: Signatures, bands: int) -> Hashes:
    """One 64-bit key per band and document, uint64[bands, documents]; equal bands have equal keys."""
    keys = np.zeros((bands, len(signatures)), np.uint64)
    _band_keys(signatures, keys)
    return keys


@kernel
def _band_keys(signatures, keys):  # type: ignore[no-untyped-def]
    rows = signatures.shape[1] // len(keys)
    for document in range(len(signatures)):
        for band in range(len(keys)):
            key = np.uint64(0)
            for row in range(band * rows, band * rows + rows):
                key = (key ^ np.uint64(signatures[document, row])) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys[band, document] = key
