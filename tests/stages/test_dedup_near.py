"""near: the documents most like a text, with estimated and exact similarity."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.dedup.near import near
from tests.stages.dedup_corpus import changed, prose, train, true_jaccard, write_documents

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace after clean: a document, three ever less like it, and others."""
    texts = [changed(prose(0), n_changes, n_changes) for n_changes in (0, 2, 6, 12)]
    write_documents(tmp_path, train(*texts, *(prose(seed) for seed in range(1, 30))), n_shards=3)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "data/code").mkdir()
    (tmp_path / "data/code/dedup.json").write_text("{}")
    return tmp_path


def test_documents_like_a_text_come_in_the_order_of_their_similarity(root: Path) -> None:
    found = near(root, prose(0), limit=3)
    assert [neighbour.id for neighbour in found] == ["d0", "d1", "d2"]
    for neighbour, n_changes in zip(found, (0, 2, 6), strict=True):
        assert neighbour.jaccard == pytest.approx(true_jaccard(prose(0), changed(prose(0), n_changes, n_changes)))
        assert abs(neighbour.estimated - neighbour.jaccard) < 0.2
    assert (found[0].shard, found[0].row) == ("00000.parquet", 0)


def test_what_is_like_nothing_has_no_neighbours(root: Path) -> None:
    assert near(root, "words that stand in no document of this corpus at all") == []
    assert near(root, "") == []
