"""dedup: signatures against datasketch, pairs against brute force, and who is removed for whom."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash, MinHashLSH
from stages.dedup.pairs import ALL_PAIRS_UP_TO, Finder, Match

from stages.dedup import stage as dedup_stage
from stages.dedup.decide import Removal, component_removals, verified_removals
from stages.dedup.minhash import MinHasher, estimates
from stages.dedup.params import DedupParams
from stages.dedup.report import marked_differences
from stages.entry import Job
from stages.execution import Execution
from stages.shingles import exact_hash, jaccard, shingles_of, words_of

DEFAULT = DedupParams()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def true_jaccard(first: str, second: str, ngram: int = 5) -> float:
    """By strings, in the words of the definition."""
    sets = []
    for text in (first, second):
        words = words_of(text)
        sets.append({tuple(words[at : at + ngram]) for at in range(max(len(words) - ngram + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def prose(seed: int, n_words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=n_words))


def changed(text: str, n_changes: int, seed: int = 0) -> str:
    """The text with some of its words replaced by ones that occur nowhere else."""
    words = text.split()
    for at in random.Random(seed).sample(range(len(words)), n_changes):
        words[at] = f"changed{seed}x{at}"
    return " ".join(words)


def dedup(root: Path, documents: list[tuple[str, str, str]], params: DedupParams = DEFAULT, workers: int = 1) -> dict:
    """Runs the stage on (id, text, split) and gives metrics, keep and removals."""
    folder = root / "data/clean/documents"
    folder.mkdir(parents=True, exist_ok=True)
    columns = dict(zip(("id", "text", "split"), map(list, zip(*documents, strict=True)), strict=True))
    half = len(documents) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        table = pa.table({name: pa.array(values[part], pa.string()) for name, values in columns.items()})
        pq.write_table(table, folder / f"{number:05d}.parquet")
    job = Job("dedup", root, Execution(workers=workers))
    job.prepare()
    dedup_stage.run(job, params)
    job.publish()
    return {
        "metrics": json.loads((job.out / "metrics.json").read_text()),
        "keep": {row["id"]: row["cluster"] for row in pq.read_table(job.out / "keep.parquet").to_pylist()},
        "removals": {row["id"]: row for row in pq.read_table(job.out / "removals.parquet").to_pylist()},
    }


def train(*texts: str) -> list[tuple[str, str, str]]:
    return [(f"d{number}", text, "train") for number, text in enumerate(texts)]


# Signatures


@pytest.mark.parametrize("n_words", [1, 4, 5, 6, 300, 5000])
def test_signatures_are_those_of_datasketch(n_words: int) -> None:
    shingles = shingles_of(words_of(prose(n_words, n_words)), 5)
    theirs = MinHash(num_perm=112, seed=1, scheme="affine32", hashfunc=lambda value: value)
    theirs.update_batch([int(value) & 0xFFFFFFFF for value in shingles])
    assert np.array_equal(MinHasher(112).signature(shingles), theirs.hashvalues)


def test_datasketch_opens_signatures_and_indexes_them() -> None:
    texts = [prose(1), changed(prose(1), 2), prose(2)]
    signatures = np.stack([MinHasher(112).signature(shingles_of(words_of(text), 5)) for text in texts])
    opened = [MinHash(hashvalues=signature, seed=1, scheme="affine32") for signature in signatures]
    ours = estimates(signatures, np.array([0, 0]), np.array([1, 2]))
    assert [opened[0].jaccard(opened[1]), opened[0].jaccard(opened[2])] == pytest.approx(list(ours))
    index = MinHashLSH(num_perm=112, params=(28, 4))
    for number, minhash in enumerate(opened[1:], 1):
        index.insert(number, minhash)
    assert index.query(opened[0]) == [1]


def test_estimates_spread_as_their_variance_says() -> None:
    pairs = [(prose(seed, 200), changed(prose(seed, 200), 8, seed)) for seed in range(150)]
    errors = []
    for first, second in pairs:
        signatures = np.stack([MinHasher(112).signature(shingles_of(words_of(text), 5)) for text in (first, second)])
        true = true_jaccard(first, second)
        error = estimates(signatures, np.array([0]), np.array([1]))[0] - true
        errors.append(error / np.sqrt(true * (1 - true) / 112))
    assert abs(np.mean(errors)) < 0.25
    assert 0.75 < np.var(errors) < 1.3


# Shingles


def test_jaccard_is_that_of_sets_of_strings() -> None:
    texts = [changed(prose(3), changes, changes) for changes in range(0, 60, 6)] + ["one", "one two", "two one two one"]
    for first, second in combinations(texts, 2):
        ours = jaccard(shingles_of(words_of(first), 5), shingles_of(words_of(second), 5))
        assert ours == pytest.approx(true_jaccard(first, second), abs=1e-12)


def test_normalisation_is_lower_case_words() -> None:
    assert words_of("The cat,\n the CAT!") == ["the", "cat", "the", "cat"]
    assert exact_hash(words_of("The cat")) == exact_hash(words_of("the  CAT."))
    assert exact_hash(words_of("???")) != exact_hash(words_of("!!!"))
    assert len(shingles_of(words_of("fewer than five words"), 5)) == 1


# Pairs


def found_pairs(texts: list[str], params: DedupParams = DEFAULT) -> dict[tuple[int, int], float]:
    shingles = [shingles_of(words_of(text), params.ngram) for text in texts]
    signatures = np.stack([MinHasher(params.n_hashes).signature(item) for item in shingles])
    matches = Finder(signatures, 0, lambda a, b: jaccard(shingles[a], shingles[b]), params).matches()
    return {(match.first, match.second): match.jaccard for match in matches}


def test_planted_pairs_are_found_and_none_below_the_threshold() -> None:
    texts = []
    for seed in range(600):
        original = prose(seed, 100 + seed % 300)
        texts += [original, changed(original, 1 + seed % 8, seed)]
    found = found_pairs(texts)
    planted = {(at, at + 1): true_jaccard(texts[at], texts[at + 1]) for at in range(0, len(texts), 2)}
    above = [pair for pair, value in planted.items() if value >= 0.8]
    assert len(above) > 250
    assert sum(pair in found for pair in above) / len(above) >= 0.99
    assert all(found[pair] == pytest.approx(planted[pair]) for pair in found)
    assert min(found.values()) >= 0.75 and any(value < 0.75 for value in planted.values())


def test_all_pairs_are_those_of_brute_force() -> None:
    texts = [changed(prose(seed // 6, 400), seed % 6, seed) for seed in range(120)]
    expected = {pair for pair in combinations(range(120), 2) if true_jaccard(texts[pair[0]], texts[pair[1]]) >= 0.8}
    found = {pair for pair, value in found_pairs(texts).items() if value >= 0.8}
    assert found <= expected and len(found) >= 0.99 * len(expected) > 50


def test_in_a_mega_bucket_every_document_meets_a_match_and_few_pairs_are_compared() -> None:
    """300 copies of each of three templates; a band of one hash puts all of them into one bucket now and then."""
    params = DedupParams(bands=64, rows=1)
    shared = prose(99, 40)
    texts = [changed(f"{shared} {prose(seed % 3, 200)}", 2, seed) for seed in range(900)]
    compared: list[tuple[int, int]] = []
    shingles = [shingles_of(words_of(text), 5) for text in texts]

    def exact(first: int, second: int) -> float:
        compared.append((first, second))
        return jaccard(shingles[first], shingles[second])

    signatures = np.stack([MinHasher(params.n_hashes).signature(item) for item in shingles])
    matches = Finder(signatures, 0, exact, params).matches()
    removals = verified_removals(matches, len(texts), 0)
    kept = [number for number in range(len(texts)) if number not in removals]
    left = [pair for pair in combinations(kept, 2) if jaccard(shingles[pair[0]], shingles[pair[1]]) >= 0.8]
    assert len(texts) > 4 * ALL_PAIRS_UP_TO and not left
    assert len(compared) < 0.25 * len(texts) * (len(texts) - 1) / 2


# Who goes


def test_a_removed_document_was_compared_with_a_kept_one() -> None:
    chain = [Match(0, 1, 0.8), Match(1, 2, 0.9)]
    assert verified_removals(chain, 3, 0) == {1: Removal(0, "near", 0.8)}
    fan = [Match(0, 1, 0.8), Match(0, 2, 0.9)]
    assert verified_removals(fan, 3, 0) == {1: Removal(0, "near", 0.8), 2: Removal(0, "near", 0.9)}


def test_without_verification_one_of_each_component_stays() -> None:
    chain = [Match(0, 1, 0.8), Match(1, 2, 0.9)]
    removals = component_removals(chain, 3, 0, lambda first, second: 0.5)
    assert removals == {1: Removal(0, "near", 0.5), 2: Removal(0, "near", 0.5)}
    leak = component_removals([Match(0, 1, 0.8), Match(1, 2, 0.9)], 3, 1, lambda first, second: 0.5)
    assert leak == {1: Removal(0, "leaked", 0.8)}


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


def test_the_longest_stays_then_the_smaller_hash_then_the_smaller_id(tmp_path: Path) -> None:
    text = prose(1)
    result = dedup(tmp_path, train(text, text.upper() + " !", text))
    assert set(result["keep"]) == {"d1"}
    assert {row["rule"] for row in result["removals"].values()} == {"exact"}
    result = dedup(tmp_path, [("b", text, "train"), ("a", text, "train")])
    assert set(result["keep"]) == {"a"}


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


@pytest.mark.parametrize("verify", [True, False])
def test_leaks_go_also_when_dedup_is_off(tmp_path: Path, verify: bool) -> None:
    result = dedup(tmp_path, RESERVED, DedupParams(enabled=False, verify=verify))
    assert set(result["removals"]) == {"copy", "near"}
    assert result["metrics"]["exact_removed"] == result["metrics"]["near_removed"] == 0


def test_a_leak_is_found_in_a_mega_bucket(tmp_path: Path) -> None:
    documents = [(f"r{number:03}", changed(prose(1), 1, number), "test") for number in range(80)]
    documents += [(f"t{number:03}", changed(prose(1), 2, 100 + number), "train") for number in range(80)]
    result = dedup(tmp_path, documents, DedupParams(enabled=False))
    assert set(result["keep"]) == {f"r{number:03}" for number in range(80)}
    assert result["metrics"]["largest_cluster"] == 160


# The stage


def mixed_corpus() -> list[tuple[str, str, str]]:
    documents = []
    for seed in range(150):
        split = "test" if seed % 29 == 0 else "train"
        documents.append((f"original{seed}", prose(seed, 60 + seed % 50), split))
        for copy in range(seed % 4):
            documents.append((f"copy{seed}.{copy}", changed(prose(seed, 60 + seed % 50), copy, seed), "train"))
    return documents


@pytest.mark.parametrize("params", [{}, {"verify": False, "bands": 14, "rows": 8}])
def test_bytes_do_not_depend_on_order_or_workers(tmp_path: Path, params: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_stage, "BATCH_CHARACTERS", 5000)
    documents = mixed_corpus()
    written = []
    for workers, order_seed in ((1, None), (2, 1), (1, 2)):
        if order_seed:
            random.Random(order_seed).shuffle(documents)
        dedup(tmp_path, documents, DedupParams(**params), workers)
        written.append({path.name: path.read_bytes() for path in (tmp_path / "data/dedup").iterdir()})
    assert sorted(written[0]) == ["clusters.html", "keep.parquet", "metrics.json", "removals.parquet"]
    assert written[0] == written[1] == written[2]


def test_removals_and_keep_list_add_up(tmp_path: Path) -> None:
    documents = mixed_corpus()
    texts = {name: text for name, text, _ in documents}
    result = dedup(tmp_path, documents)
    metrics, removals, keep = result["metrics"], result["removals"], result["keep"]
    assert metrics["documents_in"] == len(documents) == len(keep) + len(removals)
    assert metrics["documents_out"] == len(keep)
    assert len(removals) == metrics["exact_removed"] + metrics["near_removed"] + metrics["leaked_removed"]
    for name, row in removals.items():
        assert row["kept_id"] in keep and row["jaccard"] >= 0.75
        assert row["jaccard"] == pytest.approx(true_jaccard(texts[name], texts[row["kept_id"]]))


def test_the_report_shows_where_documents_differ(tmp_path: Path) -> None:
    dedup(tmp_path, train(prose(1) + " <b> more", prose(1)))
    page = (tmp_path / "data/dedup/clusters.html").read_text()
    assert "<del>&lt;b&gt; more</del>" in page and "100 equal words" in page
    assert marked_differences("a b c", "a x c") == ("a <del>b</del> c", "a <ins>x</ins> c")


def test_impossible_params_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precheck 0.8 is above threshold 0.75"):
        DedupParams(precheck=0.8)
    with pytest.raises(ValueError, match="at most 1024"):
        DedupParams(bands=100, rows=20)
    assert DedupParams(bands=14, rows=8, verify=False, precheck=0.9).n_hashes == 112
