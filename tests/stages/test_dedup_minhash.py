"""MinHash: signatures are those of datasketch, estimates spread and bands agree as the formulas say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from stages.dedup.minhash import band_keys, estimates, permutations, signatures_of
from stages.shingles import shingle_texts
from stages.utf8 import text_buffers
from tests.stages.dedup_corpus import changed, prose

N_HASHES = 112


def signed(*texts: str) -> np.ndarray:
    shingled = shingle_texts(*text_buffers(pa.array(texts)), 5)
    return signatures_of(shingled.shingles, shingled.ends, N_HASHES)


def pairs_of_sets(jaccard: float, count: int, seed: int = 0) -> np.ndarray:
    """Signatures of pairs of random sets with 400 elements between them, uint32[count, 2, hashes]."""
    common = round(400 * jaccard)
    only = 400 - common
    shingles = np.random.default_rng(seed).integers(1, 1 << 63, (count, 400), dtype=np.uint64)
    split = common + only // 2
    both = [np.concatenate((row[:split], row[:common], row[split:])) for row in shingles]
    sizes = np.tile([split, common + 400 - split], count)
    signatures = signatures_of(np.concatenate(both), np.concatenate(([0], np.cumsum(sizes))), N_HASHES)
    return signatures.reshape(count, 2, N_HASHES)


@pytest.mark.parametrize("n_words", [1, 4, 5, 6, 11, 12, 13, 300, 5000])
def test_signatures_are_those_of_datasketch(n_words: int) -> None:
    text = prose(n_words, n_words)
    shingles = shingle_texts(*text_buffers(pa.array([text])), 5).shingles
    theirs = MinHash(num_perm=N_HASHES, seed=1, scheme="affine32", hashfunc=lambda value: value)
    theirs.update_batch([int(value) & 0xFFFFFFFF for value in shingles])
    assert np.array_equal(signed(text)[0], theirs.hashvalues)


def test_signatures_are_those_of_the_definition() -> None:
    a, b = (values.astype(np.uint64) for values in permutations(N_HASHES))
    shingles = shingle_texts(*text_buffers(pa.array([prose(3, 50)])), 5).shingles
    mixed = shingles & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(16)
    images = (a[:, None] * mixed + b[:, None]) & np.uint64(0xFFFFFFFF)
    assert np.array_equal(signed(prose(3, 50))[0], images.min(axis=1))


def test_datasketch_opens_signatures_and_indexes_them() -> None:
    signatures = signed(prose(1), changed(prose(1), 2), prose(2))
    opened = [MinHash(hashvalues=signature, seed=1, scheme="affine32") for signature in signatures]
    ours = estimates(signatures, np.array([0, 0]), np.array([1, 2]))
    assert [opened[0].jaccard(opened[1]), opened[0].jaccard(opened[2])] == pytest.approx(list(ours))
    index = MinHashLSH(num_perm=N_HASHES, params=(28, 4))
    for number, minhash in enumerate(opened[1:], 1):
        index.insert(number, minhash)
    assert index.query(opened[0]) == [1]


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.75, 0.9])
def test_estimates_have_the_mean_and_variance_of_the_formula(jaccard: float) -> None:
    count = 2000
    signatures = pairs_of_sets(jaccard, count).reshape(2 * count, N_HASHES)
    found = estimates(signatures, np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2)).astype(float)
    variance = jaccard * (1 - jaccard) / N_HASHES
    assert abs(found.mean() - jaccard) < 4 * np.sqrt(variance / count)
    assert 0.87 < found.var() / variance < 1.13, "within 4 standard errors of sqrt(2 / count)"


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (28, 4)])
@pytest.mark.parametrize("jaccard", [0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95])
def test_pairs_share_a_band_as_often_as_the_formula_says(bands: int, rows: int, jaccard: float) -> None:
    count = 2000
    keys = band_keys(pairs_of_sets(jaccard, count, seed=round(jaccard * 100)).reshape(-1, N_HASHES), bands)
    found = int((keys[:, ::2] == keys[:, 1::2]).any(axis=0).sum())
    low, high = wilson(found, count)
    assert low <= 1 - (1 - jaccard**rows) ** bands <= high


def wilson(found: int, count: int, z: float = 3.3) -> tuple[float, float]:
    """The interval of 99.9% for a share (Wilson 1927); 14 of these tests fail by chance once in 70 seeds."""
    share, spread = found / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def test_keys_of_bands_are_equal_where_their_hashes_are() -> None:
    signatures = signed(*(changed(prose(1), number, number) for number in range(30)))
    keys = band_keys(signatures, 28)
    parts = signatures.reshape(30, 28, 4)
    for band in range(28):
        equal = (parts[:, None, band] == parts[None, :, band]).all(axis=2)
        assert np.array_equal(keys[band][:, None] == keys[band][None, :], equal)
