"""edited: a result of files that were edited while a stage read them is no result, and is kept under no name.

That of params which were edited stands in test_entry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.clean import stage as clean_stage
from stages.download import files
from stages.edited import Stamp
from stages.errors import BadInput, Failed
from stages.files import file_sha256
from stages.formats import line_cuts
from stages.sources import check_unchanged
from tests.stages.test_clean import clean, corpus
from tests.stages.test_download import download, put

LINES = '{"text": "one"}\n{"text": "two"}\n'


def edited_after(function: Callable, edit: Callable[[], object]) -> Callable:
    """The function, after which somebody edits files."""

    def then_edited(*arguments: object) -> object:
        found = function(*arguments)
        edit()
        return found

    return then_edited


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda inputs: (inputs / "a.jsonl").write_text(LINES * 2), "a.jsonl: changed while the stage read; the same"),
        (lambda inputs: (inputs / "0.txt").unlink(), "0.txt: removed while the stage read; the same"),
        (lambda inputs: (inputs / "c.txt").write_text("three"), "c.txt: put there while the stage read; the same"),
    ],
)
def test_files_that_change_while_download_reads_them_are_named(tmp_path: Path, monkeypatch, edit, line: str) -> None:
    put(tmp_path, "a.jsonl", LINES)
    put(tmp_path, "0.txt", "a text, which is read first")
    with monkeypatch.context() as patched:
        patched.setattr(files, "line_cuts", edited_after(line_cuts, lambda: edit(tmp_path / "inputs")))
        with pytest.raises(Failed, match=rf"^{tmp_path}/inputs/{line} command reads it as it is now"):
            download(tmp_path, source="files")
    assert not (tmp_path / "data/download").exists()
    manifest = download(tmp_path, source="files")
    assert [shard["sha256"] for shard in manifest["shards"]] == [
        file_sha256(tmp_path / shard["file"]) for shard in manifest["shards"]
    ]


def test_files_that_are_no_documents_may_change(tmp_path: Path, monkeypatch) -> None:
    def readme() -> None:
        put(tmp_path, "README.md", "what this is")

    put(tmp_path, "a.jsonl", LINES)
    monkeypatch.setattr(files, "file_sha256", edited_after(file_sha256, readme))
    assert download(tmp_path, source="files")["documents"] == 2


def test_what_was_counted_of_an_edited_file_is_not_kept_for_the_one_that_was_hashed(tmp_path: Path, monkeypatch):
    path = put(tmp_path, "a.jsonl", LINES)
    with monkeypatch.context() as patched:
        patched.setattr(files, "file_sha256", edited_after(file_sha256, lambda: path.write_text(LINES * 2)))
        with pytest.raises(Failed):
            download(tmp_path, source="files")
    path.write_text(LINES)
    assert download(tmp_path, source="files")["documents"] == 2


def test_what_clean_made_of_an_edited_file_is_not_kept_for_the_one_that_download_read(tmp_path: Path, monkeypatch):
    """Nor published: clean does not depend on the file, so DVC would take it for what the manifest means."""
    texts = [f"text {number}" for number in range(60)]
    corpus(tmp_path, texts)
    others = "".join(f'{{"text": "later {number}"}}\n' for number in range(60))
    edited = edited_after(check_unchanged, lambda: put(tmp_path, "a.jsonl", others))
    with monkeypatch.context() as patched:
        patched.setattr(clean_stage, "check_unchanged", edited)
        with pytest.raises(Failed, match="a.jsonl: changed while the stage read; the same command reads it as it is"):
            clean(tmp_path)
    assert not (tmp_path / "data/clean").exists()
    with pytest.raises(BadInput, match="a.jsonl: changed after the stage download read it; run `dvc repro`, or, where"):
        clean(tmp_path)
    corpus(tmp_path, texts)
    assert clean(tmp_path)["bytes_in"] == sum(map(len, texts))


def test_a_stamp_is_another_after_a_write_and_after_a_replacement(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    assert Stamp.of(path) is None
    path.write_text("one")
    first = Stamp.of(path)
    assert first == Stamp.of(path)
    other.write_text("two")
    other.replace(path)
    assert Stamp.of(path) != first
