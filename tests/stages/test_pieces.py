"""Pieces: bounds that depend on content alone, and parts of files that together are the whole."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.documents import ShardWriter
from stages.formats import line_cuts, parquet_cuts
from stages.pieces import even_step, groups, ranges
from stages.sources import Part, SourceFile, read_file

NAMES = [f"folder/file-{number}.txt" for number in range(300)]


def grouped(names: list[str], sizes: dict[str, int] | None = None) -> list[list[str]]:
    return list(groups([(name, name, (sizes or {}).get(name, 50)) for name in names], mean=1000, most=5000))


def test_small_files_go_together_in_their_order() -> None:
    found = grouped(NAMES)
    assert [name for group in found for name in group] == NAMES
    assert 5 < len(found) < 40
    assert max(len(group) for group in found) <= 100


@given(st.integers(0, 299))
def test_a_file_that_is_removed_redoes_its_group_alone(place: int) -> None:
    before, after = grouped(NAMES), grouped(NAMES[:place] + NAMES[place + 1 :])
    assert sum(group not in before for group in after) <= 2


@given(st.integers(0, 299), st.integers(1, 5000))
def test_a_file_of_another_size_redoes_its_group_and_at_most_the_next(place: int, size: int) -> None:
    before, after = grouped(NAMES), grouped(NAMES, {NAMES[place]: size})
    assert sum(group not in before for group in after) <= 3


def test_ranges_follow_each_other() -> None:
    assert list(ranges([(10, 1), (25, 4)], 40)) == [(0, 10, 0), (10, 25, 1), (25, 40, 4)]
    assert list(ranges([], 7)) == [(0, 7, 0)]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=30), st.integers(1, 200), st.booleans())
def test_parts_of_json_lines_are_the_file(tmp_path_factory, texts: list[str], step: int, ends: bool) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    path: Path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n\n".join(lines) + "\n" * ends)
    file = SourceFile(path, "a.jsonl")
    size = path.stat().st_size
    parts = [Part(path, "a.jsonl", begin, end, before) for begin, end, before in ranges(line_cuts(path, step), size)]
    found = [document for part in parts for document in read_file(file, "text", part=part)]
    assert found == list(read_file(file, "text"))
    assert [document.text for document in found] == texts


def test_equal_pieces_keep_all_cores_at_work(tmp_path: Path) -> None:
    assert [even_step(size, 16) for size in (0, 5, 16, 17, 25, 48, 49)] == [0, 5, 16, 9, 13, 16, 13]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "of twenty bytes"}\n' * 1000)
    begins = [0, *(place for place, _ in line_cuts(path, 10_000)), path.stat().st_size]
    assert [following - begin for begin, following in pairwise(begins)] == [9352, 9352, 9296], "whole lines"


def test_a_shard_of_documents_can_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.documents.GROUP_BYTES", 1000)
    writer = ShardWriter(tmp_path, pa.schema([("id", pa.string()), ("text", pa.string())]), "zstd")
    for number in range(100):
        writer.add({"id": f"{number:03}", "text": f"{number:097}"})
    writer.close()
    cuts, n_groups = parquet_cuts(tmp_path / "00000.parquet", "text", 8000)
    assert n_groups == 12 and cuts == [(6, 54)]


def test_parts_of_parquet_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"text {number}" * 9 for number in range(100)], "n": range(100)}), path, row_group_size=7
    )
    cuts, n_groups = parquet_cuts(path, "text", 1000)
    assert n_groups == 15 and 2 < len(cuts) < 15
    file = SourceFile(path, "a.parquet")
    parts = [Part(path, "a.parquet", begin, end, before) for begin, end, before in ranges(cuts, n_groups)]
    assert [d for part in parts for d in read_file(file, "text", part=part)] == list(read_file(file, "text"))
