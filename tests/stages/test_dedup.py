"""dedup: who is compared, who is removed for whom, and that nothing but the documents decides it."""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.dedup import buckets, compare, lists, order, stars
from stages.dedup import stage as dedup_stage
from stages.dedup.decide import LEAKED, NEAR, Components, component_removals, verified_removals
from stages.dedup.near import exact_jaccard
from stages.dedup.params import DedupParams
from stages.dedup.report import marked_differences
from stages.dedup.sketch import read_batches
from stages.dedup.stars import Bucket
from stages.entry import Job
from stages.errors import BadInput, Stopped
from stages.execution import Execution
from tests.stages.dedup_corpus import DEFAULT, Documents, changed, dedup, prose, train, true_jaccard, write_documents

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


# Who goes


def decided(matches: list[tuple[int, int, float]], n_reserved: int = 0) -> list[tuple[int, int, int, float]]:
    first, second, jaccards = (np.array(column) for column in zip(*sorted(matches), strict=True))
    return list(
        zip(*(column.tolist() for column in verified_removals(first, second, jaccards, n_reserved)), strict=True)
    )


def test_a_removed_document_was_compared_with_a_kept_one() -> None:
    assert decided([(0, 1, 0.8), (1, 2, 0.9)]) == [(1, 0, NEAR, 0.8)]
    assert decided([(0, 1, 0.8), (0, 2, 0.9)]) == [(1, 0, NEAR, 0.8), (2, 0, NEAR, 0.9)]


def test_a_removal_names_a_reserved_document_first_then_the_most_similar() -> None:
    assert decided([(0, 9, 0.8), (1, 9, 0.9), (2, 9, 0.9)]) == [(9, 1, NEAR, 0.9)]
    assert decided([(0, 9, 0.8), (1, 9, 0.85), (5, 9, 0.99)], n_reserved=2) == [(9, 1, LEAKED, 0.85)]


def test_decisions_are_those_of_plain_python() -> None:
    generator = random.Random(0)
    for _ in range(50):
        pairs = {tuple(sorted(generator.sample(range(30), 2))) for _ in range(40)}
        matches = [(one, other, generator.randint(75, 80) / 100) for one, other in sorted(pairs) if other >= 3]
        removed: dict[int, tuple[int, int, int, float]] = {}
        for document in range(3, 30):
            kept = [match for match in matches if match[1] == document and match[0] not in removed]
            if kept:
                first, _, jaccard = min(kept, key=lambda match: (match[0] >= 3, -match[2], match[0]))
                removed[document] = (document, first, LEAKED if first < 3 else NEAR, jaccard)
        assert decided(matches, n_reserved=3) == list(removed.values())


def test_without_verification_one_of_each_component_stays() -> None:
    def removed(n_reserved: int) -> list[tuple[int, int, int]]:
        found = component_removals(np.array([0, 1, 3]), np.array([1, 2, 4]), 5, n_reserved)
        return list(zip(found.documents.tolist(), found.kept.tolist(), found.rules.tolist(), strict=True))

    assert removed(0) == [(1, 0, NEAR), (2, 0, NEAR), (4, 3, NEAR)]
    assert removed(1) == [(1, 0, LEAKED), (4, 3, NEAR)], "a leak connects nothing"


def test_components_are_named_by_their_smallest_member() -> None:
    components = Components(7)
    components.join(np.array([5, 3, 2]), np.array([6, 5, 4]))
    assert components.names(np.arange(7)).tolist() == [0, 1, 2, 3, 2, 3, 3]


def test_chain_in_the_stage_keeps_both_ends(tmp_path: Path) -> None:
    a = prose(1, 200)
    b = " ".join(a.split()[20:])
    c = " ".join(b.split()[35:])
    assert true_jaccard(a, b) > 0.75 and true_jaccard(b, c) > 0.75 and true_jaccard(a, c) < 0.75
    result = dedup(tmp_path, train(c, b, a))
    assert set(result["keep"]) == {"d0", "d2"}
    assert set(result["keep"].values()) == {"d2"}
    assert result["removals"]["d1"]["kept_id"] == "d2"
    assert result["removals"]["d1"]["jaccard"] == pytest.approx(true_jaccard(a, b))


def test_the_longest_stays_then_the_smaller_id(tmp_path: Path) -> None:
    text = prose(1)
    result = dedup(tmp_path, train(text, text.upper() + " !", text))
    assert set(result["keep"]) == {"d1"}
    assert {row["rule"] for row in result["removals"].values()} == {"exact"}
    result = dedup(tmp_path, [(name, text, "train") for name in "dbac"])
    assert set(result["keep"]) == {"a"}


def test_preference_is_reserved_then_longest_then_hash() -> None:
    reserved, sizes = np.array([False, True, False, False]), np.array([9, 1, 8, 1 << 31], np.uint32)
    exact = np.zeros((4, 2), np.uint64)
    assert order.preference_keys(reserved, sizes, exact).argsort().tolist() == [1, 3, 0, 2]
    exact[:, 0] = np.array([3, 2, 1, 0], np.uint64) << np.uint64(32)
    same = np.full(4, 7, np.uint32)
    assert order.preference_keys(np.zeros(4, bool), same, exact).argsort().tolist() == [3, 2, 1, 0]


def test_a_copy_goes_for_the_kept_document_of_its_original(tmp_path: Path) -> None:
    long, short = prose(1) + " and more", changed(prose(1), 1)
    result = dedup(tmp_path, train(long, short, short))
    assert set(result["keep"]) == {"d0"}
    assert {(row["kept_id"], row["rule"]) for row in result["removals"].values()} == {("d0", "near")}
    assert all(row["jaccard"] == pytest.approx(true_jaccard(long, short)) for row in result["removals"].values())


RESERVED = [
    ("test", prose(1), "test"),
    ("validation", changed(prose(1), 1), "validation"),
    ("copy", prose(1).upper(), "train"),
    ("near", changed(prose(1), 2, 5) + " and it is the longest of them all", "train"),
    ("twin1", prose(2), "train"),
    ("twin2", prose(2), "train"),
    ("twin3", changed(prose(2), 1), "train"),
    ("other", prose(3), "train"),
]


@pytest.mark.parametrize("params", [{}, {"verify": False}, {"verify": False, "bands": 14, "rows": 8}])
def test_reserved_documents_stay_and_what_repeats_them_goes(tmp_path: Path, params: dict) -> None:
    result = dedup(tmp_path, RESERVED, DedupParams(**params))
    assert {"test", "validation", "other"} <= set(result["keep"]) and len(result["keep"]) == 4
    assert {name for name, row in result["removals"].items() if row["rule"] == "leaked"} == {"copy", "near"}
    assert {row["kept_id"] for row in result["removals"].values()} <= set(result["keep"])
    assert result["metrics"]["leaked_removed"] == 2
    texts = {name: text for name, text, _ in RESERVED}
    for name, row in result["removals"].items():
        assert row["jaccard"] == pytest.approx(true_jaccard(texts[name], texts[row["kept_id"]]))


@pytest.mark.parametrize("verify", [True, False])
def test_leaks_go_also_when_dedup_is_off(tmp_path: Path, verify: bool) -> None:
    result = dedup(tmp_path, RESERVED, DedupParams(enabled=False, verify=verify))
    assert set(result["removals"]) == {"copy", "near"}
    assert result["metrics"]["exact_removed"] == result["metrics"]["near_removed"] == 0


@pytest.mark.parametrize("documents", [[], train(""), train("", "", "?"), train("one")], ids=len)
def test_few_or_empty_documents_are_no_special_case(tmp_path: Path, documents: Documents) -> None:
    result = dedup(tmp_path, documents)
    assert len(result["keep"]) == len({text for _, text, _ in documents})


# The stage


def mixed_corpus() -> Documents:
    documents = []
    for seed in range(150):
        split = "test" if seed % 29 == 0 else "train"
        documents.append((f"original{seed}", prose(seed, 60 + seed % 50), split))
        for copy in range(seed % 4):
            documents.append((f"copy{seed}.{copy}", changed(prose(seed, 60 + seed % 50), copy, seed), "train"))
    documents += [(f"template{n}", changed(prose(1000, 150), n % 3, n), "train") for n in range(90)]
    return documents


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parts, chunks and files as a large corpus has."""
    monkeypatch.setattr(buckets, "PART_ENTRIES", 300)
    monkeypatch.setattr(compare, "RANGE_PAIRS", 2048)
    monkeypatch.setattr(compare, "SAMPLE", 64)
    monkeypatch.setattr(compare, "CHUNK_PAIRS", 100)
    monkeypatch.setattr(compare, "CHUNK_SHINGLES", 100_000)
    monkeypatch.setattr(lists, "PART_ROWS", 50)
    monkeypatch.setattr(lists, "GROUP_ROWS", 70)
    monkeypatch.setattr(lists, "SAMPLE", 7)


def written(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data/dedup").iterdir()}


@pytest.mark.parametrize("params", [{}, {"verify": False, "bands": 14, "rows": 8}])
@pytest.mark.usefixtures("small_parts")
def test_bytes_do_not_depend_on_order_shards_or_workers(tmp_path: Path, params: dict) -> None:
    documents = mixed_corpus()
    found = []
    for workers, n_shards, seed in ((1, 2, 0), (2, 5, 1), (1, 1, 2)):
        random.Random(seed).shuffle(documents)
        root = tmp_path / str(seed)
        dedup(root, documents, DedupParams(**params), workers, n_shards)
        found.append(written(root))
    assert sorted(found[0]) == ["clusters.html", "keep.parquet", "metrics.json", "removals.parquet"]
    assert found[0] == found[1] == found[2]


def test_parts_change_nothing_but_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    result = dedup(tmp_path / "whole", mixed_corpus())
    request.getfixturevalue("small_parts")
    assert dedup(tmp_path / "parts", mixed_corpus()) == result


def test_a_killed_run_goes_on_and_a_changed_shard_is_sketched_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = mixed_corpus()
    expected = dedup(tmp_path / "expected", documents)
    root = tmp_path / "killed"

    def killed(*args: object) -> None:
        raise Stopped("SIGTERM")

    for step in ("write_lists", "star_matches", "exact_jaccards", "close_pairs"):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(dedup_stage, step, killed)
            dedup(root, documents)
    done = {
        path.name: path.stat().st_mtime_ns
        for path in (root / ".dvc/tmp/millrace/dedup/tasks/sketch").glob("*/keys.bin")
    }
    assert dedup(root, documents) == expected
    assert written(root) == written(tmp_path / "expected")
    assert done == {
        path.name: path.stat().st_mtime_ns
        for path in (root / ".dvc/tmp/millrace/dedup/tasks/sketch").glob("*/keys.bin")
    }
    sketches = root / ".dvc/tmp/millrace/dedup/tasks/sketch"
    before = set(sketches.iterdir())
    dedup(root, [*documents[:-1], (*documents[-1][:1], "another text", "train")])
    assert len(set(sketches.iterdir()) - before) == 1


def test_removals_and_keep_list_add_up(tmp_path: Path) -> None:
    documents = mixed_corpus()
    texts = {name: text for name, text, _ in documents}
    result = dedup(tmp_path, documents)
    metrics, removals, keep = result["metrics"], result["removals"], result["keep"]
    assert metrics["documents_in"] == len(documents) == len(keep) + len(removals)
    assert metrics["documents_out"] == len(keep)
    assert len(removals) == metrics["exact_removed"] + metrics["near_removed"] + metrics["leaked_removed"]
    assert list(keep) == sorted(keep) and list(removals) == sorted(removals)
    assert metrics["clusters"] == len({keep[row["kept_id"]] for row in removals.values()})
    for name, row in removals.items():
        assert row["kept_id"] in keep and row["jaccard"] >= 0.75
        assert row["jaccard"] == pytest.approx(true_jaccard(texts[name], texts[row["kept_id"]]))


def test_the_lists_name_the_normalisation(tmp_path: Path) -> None:
    dedup(tmp_path, train(prose(1)))
    for name in ("keep", "removals"):
        metadata = pq.read_schema(tmp_path / f"data/dedup/{name}.parquet").metadata
        assert metadata[b"millrace.normalisation"].startswith(b"2-") and metadata[b"millrace.ngram"] == b"5"


def test_the_report_shows_where_documents_differ(tmp_path: Path) -> None:
    dedup(tmp_path, train(prose(1) + " <b> more", prose(1)))
    page = (tmp_path / "data/dedup/clusters.html").read_text()
    assert "<del>&lt;b&gt; more</del>" in page and "100 equal words" in page
    assert "Jaccard 0.983, estimated 0." in page or "Jaccard 0.983, estimated 1." in page
    assert marked_differences("a b c", "a x c") == ("a <del>b</del> c", "a <ins>x</ins> c")


def test_the_report_shows_differences_before_exact_copies(tmp_path: Path) -> None:
    copies = [(f"a{seed:02}", prose(seed, 300) + "!" * extra, "train") for seed in range(25) for extra in (0, 1)]
    near = [("n1", prose(99) + " <b> more", "train"), ("n2", prose(99), "train"), ("n3", prose(99) + "?", "train")]
    documents = [(f"{name}{number}", *rest) for number, (name, *rest) in enumerate(copies)]
    dedup(tmp_path, [*documents, *near[:2]])
    page = (tmp_path / "data/dedup/clusters.html").read_text()
    assert page.index("<del>&lt;b&gt; more</del>") < page.index("<h2>2.") and page.count("<h2>") == 20
    assert "a00" in page, "a text that no pair of near-duplicates needed"
    dedup(tmp_path / "three", [*documents, *near])
    assert "n3" in (tmp_path / "three/data/dedup/clusters.html").read_text()


def test_the_report_stays_small_for_huge_documents_and_clusters(tmp_path: Path) -> None:
    copies = [changed(prose(1), 1, seed) for seed in range(300)]
    dedup(tmp_path, train("x" * 3_000_000 + " end", "y " + "x" * 3_000_000 + " end", prose(2, 300_000), *copies))
    page = (tmp_path / "data/dedup/clusters.html").read_text()
    assert len(page) < 100_000 and "more</p>" in page


def test_read_batches_gives_wanted_rows_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path, train(*(prose(seed) for seed in range(130))), n_shards=1)
    path = tmp_path / "data/clean/documents/00000.parquet"
    monkeypatch.setattr("stages.dedup.sketch.BATCH_BYTES", 3000)
    for rows in (list(range(130)), [0, 49, 50, 129], [60], []):
        batches = list(read_batches(path, ["id", "text"], np.array(rows, np.int64)))
        assert [name for batch in batches for name in batch.column("id").to_pylist()] == [f"d{row}" for row in rows]
        assert all(len(batch) < 10 for batch in batches)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    write_documents(tmp_path, train(prose(1), prose(2)))
    path = tmp_path / "data/clean/documents/00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"00001.parquet: cannot be read as Parquet .*; remove it and run `dvc repro`"):
        dedup_stage.run(Job("dedup", tmp_path, Execution(workers=1)), DEFAULT)


def test_exact_jaccard_is_that_of_sets_of_strings() -> None:
    import pyarrow as pa

    texts = [changed(prose(3), changes, changes) for changes in range(0, 60, 6)] + ["one", "one two", "two one two one"]
    for first, second in combinations(texts, 2):
        ours = exact_jaccard(pa.array([first]), pa.array([second]), 5)
        assert ours == pytest.approx(true_jaccard(first, second), abs=1e-12)


def test_impossible_params_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precheck 0.8 is above threshold 0.75"):
        DedupParams(precheck=0.8)
    with pytest.raises(ValueError, match="at most 1024"):
        DedupParams(bands=100, rows=20)
    assert DedupParams(bands=14, rows=8, verify=False, precheck=0.9).n_hashes == 112
    assert stars.HUBS == 64
