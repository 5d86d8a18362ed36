"""dedup: which documents are compared, and how alike they are."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from stages.dedup import buckets, compare
from stages.dedup.near import exact_jaccard
from stages.dedup.params import DedupParams
from stages.dedup.sketch import Sketches
from stages.dedup.stars import Bucket
from tests.stages.dedup_corpus import Documents, changed, dedup, prose, train, true_jaccard

# Pairs


def test_planted_pairs_are_found_and_none_below_the_threshold(tmp_path: Path) -> None:
    documents, planted = [], {}
    for seed in range(400):
        original = prose(seed, 100 + seed % 300)
        copy = changed(original, 1 + seed % 8, seed) + " longer"
        planted[f"a{seed}"] = true_jaccard(original, copy)
        documents += [(f"a{seed}", original, "train"), (f"b{seed}", copy, "train")]
    removals = dedup(tmp_path, documents)["removals"]
    assert set(removals) == {name for name, value in planted.items() if value >= 0.75}
    assert 200 < len(removals) < 380, "some on either side of the threshold"
    for name, row in removals.items():
        assert row["kept_id"] == name.replace("a", "b") and row["jaccard"] == pytest.approx(planted[name], abs=1e-12)


def test_kept_documents_are_those_of_brute_force(tmp_path: Path) -> None:
    """Groups of up to nine near-copies, compared all with all."""
    documents = [(f"d{n:03}", changed(prose(n // 9, 200 + n % 7), n % 9, n), "train") for n in range(180)]
    removals = dedup(tmp_path, documents)["removals"]
    similar = {
        (one[0], other[0]) for one, other in combinations(documents, 2) if true_jaccard(one[1], other[1]) >= 0.75
    }
    ordered = preferred(documents)
    kept: list[str] = []
    for name, _, _ in ordered:
        if not any((name, other) in similar or (other, name) in similar for other in kept):
            kept.append(name)
    assert {name for name, _, _ in documents} - set(removals) == set(kept)
    assert len(similar) > 200 and 30 < len(kept) < 150


def preferred(documents: Documents) -> Documents:
    """Longest first; no two of these are of one length and alike."""
    return sorted(documents, key=lambda document: -len(document[1]))


def bucket_pairs(numbers: list[list[int]], n_reserved: int, enabled: bool, verify: bool = True) -> set[tuple[int, int]]:
    flat = np.array([number for bucket in numbers for number in bucket], np.uint32)
    ends = np.cumsum([len(bucket) for bucket in numbers])
    kernel = buckets._all_pairs if verify else buckets._first_pairs
    pairs = np.empty(kernel(flat, ends, n_reserved, enabled, np.empty(0, np.uint64)), np.uint64)
    kernel(flat, ends, n_reserved, enabled, pairs)
    first, second = compare.split_pairs(pairs)
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_a_bucket_gives_all_pairs_but_those_never_compared() -> None:
    assert bucket_pairs([[0, 1, 2, 5], [3, 4]], 0, True) == {*combinations([0, 1, 2, 5], 2), (3, 4)}
    assert bucket_pairs([[0, 1, 2, 5], [3, 4]], 2, True) == {(0, 2), (0, 5), (1, 2), (1, 5), (2, 5), (3, 4)}
    assert bucket_pairs([[0, 1, 2, 5], [3, 4]], 2, False) == {(0, 2), (0, 5), (1, 2), (1, 5)}
    assert bucket_pairs([list(range(65)), [70, 71]], 0, True) == {(70, 71)}, "a large one is compared in stars"


def test_without_verification_a_bucket_gives_two_stars() -> None:
    assert bucket_pairs([[0, 1, 2, 5, 6], [3, 4]], 2, True, False) == {(0, 2), (0, 5), (0, 6), (2, 5), (2, 6), (3, 4)}
    assert bucket_pairs([[0, 1, 2, 5, 6], [3, 4]], 2, False, False) == {(0, 2), (0, 5), (0, 6)}
    assert bucket_pairs([list(range(100))], 0, True, False) == {(0, other) for other in range(1, 100)}


def test_bands_of_a_small_corpus_are_reduced_together() -> None:
    assert buckets.bands_together(40_000, range(14)) == [range(6), range(6, 12), range(12, 14)]
    assert buckets.bands_together(1 << 20, range(28, 29)) == [range(28, 29)]
    assert buckets.bands_together(0, range(28)) == [range(28)]


def test_ranges_of_pairs_hold_every_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RANGE_PAIRS", 64)
    monkeypatch.setattr(compare, "SAMPLE", 4)
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{number}.npy" for number in range(5)]
    everything = [np.unique(generator.integers(0, 1 << 63, 100, dtype=np.uint64) * np.uint64(2)) for _ in files]
    for path, pairs in zip(files, everything, strict=True):
        np.save(path, pairs)
    bounds = compare.range_bounds(files)
    counts = [sum(int(((p >= b) & (p <= e - 1)).sum()) for p in everything) for b, e in pairwise(bounds)]
    assert sum(counts) == sum(map(len, everything)) and max(counts) < 3 * 64 and len(counts) > 5


# Large buckets


def compared_in_stars(n_documents: int, n_reserved: int, similar: set[tuple[int, int]], enabled: bool = True) -> list:
    """All pairs that `Bucket` asks for, until it is done."""
    bucket = Bucket(np.arange(n_reserved, dtype=np.uint32), np.arange(n_reserved, n_documents, dtype=np.uint32))
    asked: list[tuple[int, int]] = []
    while len(hubs := bucket.hubs(enabled)):
        pairs = [(int(hub), int(other)) for hub in hubs for other in bucket.left if other > hub]
        asked += pairs
        found = sorted(set(pairs) & similar)
        bucket.advance(hubs, np.array([first << 32 | second for first, second in found], np.uint64))
    return asked


def test_stars_stay_linear_and_every_document_meets_one_it_matches() -> None:
    similar = {(one, other) for one, other in combinations(range(900), 2) if one % 3 == other % 3}
    asked = compared_in_stars(900, 0, similar)
    assert len(asked) < 8 * 900
    assert {other for _, other in similar} == {other for pair in asked if pair in similar for other in pair[1:]}


def test_at_most_64_training_hubs_but_every_reserved_one() -> None:
    asked = compared_in_stars(300, 0, set())
    assert {first for first, _ in asked} == set(range(64))
    asked = compared_in_stars(300, 100, set(), enabled=False)
    assert set(asked) == {(one, other) for one in range(100) for other in range(100, 300)}


def test_in_a_large_bucket_every_copy_goes(tmp_path: Path) -> None:
    """300 copies of each of three templates; a band of one hash puts all of them into one bucket now and then."""
    shared = prose(99, 40)
    texts = [changed(f"{shared} {prose(seed % 3, 200)}", 2, seed) for seed in range(900)]
    result = dedup(tmp_path, train(*texts), DedupParams(bands=32, rows=1))
    kept = [texts[int(name[1:])] for name in result["keep"]]
    assert not [pair for pair in combinations(kept, 2) if true_jaccard(*pair) >= 0.75]
    assert 3 <= len(kept) < 30
    for name, row in result["removals"].items():
        assert row["kept_id"] in result["keep"] and row["jaccard"] >= 0.75
        assert row["jaccard"] == pytest.approx(true_jaccard(texts[int(name[1:])], texts[int(row["kept_id"][1:])]))


def test_a_leak_is_found_in_a_large_bucket(tmp_path: Path) -> None:
    documents = [(f"r{number:03}", changed(prose(1), 1, number), "test") for number in range(80)]
    documents += [(f"t{number:03}", changed(prose(1), 2, 100 + number), "train") for number in range(80)]
    result = dedup(tmp_path, documents, DedupParams(enabled=False))
    assert set(result["keep"]) == {f"r{number:03}" for number in range(80)}
    assert result["metrics"]["largest_cluster"] == 160


def test_exact_jaccard_is_that_of_sets_of_strings() -> None:
    import pyarrow as pa

    texts = [changed(prose(3), changes, changes) for changes in range(0, 60, 6)] + ["one", "one two", "two one two one"]
    for first, second in combinations(texts, 2):
        ours = exact_jaccard(pa.array([first]), pa.array([second]), 5)
        assert ours == pytest.approx(true_jaccard(first, second), abs=1e-12)


def test_parts_of_a_band_hold_every_document_once_in_the_order_of_keys(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    keys = [generator.integers(0, 1 << 64, (2, n), dtype=np.uint64) for n in (5, 0, 300)]
    for number, all_keys in enumerate(keys):
        all_keys[1, :1] = (1 << 64) - 1
        rows = np.argsort(all_keys, axis=1)
        (folder := tmp_path / str(number)).mkdir()
        np.take_along_axis(all_keys, rows, axis=1).tofile(folder / "keys.bin")
        rows.astype(np.uint32).tofile(folder / "rows.bin")
        np.save(folder / "sizes.npy", np.zeros(all_keys.shape[1], np.uint32))
    sketches = Sketches([], [tmp_path / str(number) for number in range(3)], 112)
    for bits in (0, 3):
        found = [sketches.entries(1, prefix, bits) for prefix in range(1 << bits)]
        for prefix, (part, _) in enumerate(found):
            assert all(int(key) >> 64 - bits == prefix for key in part)
        positions = np.concatenate([positions for _, positions in found])
        assert sorted(positions.tolist()) == list(range(305))
        np.testing.assert_array_equal(
            np.concatenate([part for part, _ in found]), np.concatenate([k[1] for k in keys])[positions]
        )
