"""dedup: who is removed, and for whom."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from stages.dedup import order
from stages.dedup.decide import LEAKED, NEAR, Components, component_removals, verified_removals
from stages.dedup.params import DedupParams
from tests.stages.dedup_corpus import Documents, changed, dedup, prose, train, true_jaccard


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
