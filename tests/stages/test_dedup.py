"""dedup as a stage: nothing but the documents decides what it writes, and what it writes adds up."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.dedup import buckets, compare, lists, stars
from stages.dedup import stage as dedup_stage
from stages.dedup.params import DedupParams
from stages.dedup.report import marked_differences
from stages.dedup.sketch import read_batches
from stages.entry import Job
from stages.errors import BadInput, Stopped
from stages.execution import Execution
from tests.stages.dedup_corpus import DEFAULT, Documents, changed, dedup, prose, train, true_jaccard, write_documents


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
    assert metrics["bytes_in"] == sum(len(text.encode()) for text in texts.values())
    assert metrics["bytes_out"] == sum(len(texts[name].encode()) for name in keep)
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


def test_impossible_params_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precheck 0.8 is above threshold 0.75"):
        DedupParams(precheck=0.8)
    with pytest.raises(ValueError, match="at most 1024"):
        DedupParams(bands=100, rows=20)
    assert DedupParams(bands=14, rows=8, verify=False, precheck=0.9).n_hashes == 112
    assert stars.HUBS == 64
