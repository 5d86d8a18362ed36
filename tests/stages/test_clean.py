"""clean: verdicts, splits and samples of every document, done piece by piece and once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.clean import piece
from stages.clean import stage as clean_stage
from stages.clean.params import CleanParams
from stages.documents import read_table
from stages.download.params import DownloadParams
from stages.download.stage import run as run_download
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.splits import SplitParams, split_of
from stages.wording import counted

OFF = CleanParams(recipe="none")
HALVES = SplitParams(validation=0.3, test=0.3)


def corpus(root: Path, texts: list[str | None]) -> None:
    """A corpus of the user's own: one JSON line a text, read by the stage download."""
    (root / "inputs").mkdir(exist_ok=True)
    (root / "inputs/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    job = Job("download", root, Execution(workers=1))
    job.prepare()
    run_download(job, DownloadParams(source="files"))
    job.publish()


def clean(root: Path, params: CleanParams = OFF, split: SplitParams = HALVES, workers: int = 1) -> dict:
    job = Job("clean", root, Execution(workers=workers))
    job.prepare()
    clean_stage.run(job, params, split)
    job.publish()
    return json.loads((root / "data/clean/metrics.json").read_text())


PROSE = (
    "The quick brown fox jumps over a lazy dog while seven wizards quietly mix strange potions beneath old bridges "
    "and nobody in town remembers why those lanterns burn."
)


def test_html_is_turned_into_text_for_html_files_unless_said_otherwise(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    for number in range(40):
        (tmp_path / f"inputs/{number}.html").write_text(f"<p>page {number}</p>")
        (tmp_path / f"inputs/{number}.txt").write_text(f"<p>text {number}</p>")
    job = Job("download", tmp_path)
    job.prepare()
    run_download(job, DownloadParams(source="files"))
    job.publish()
    for html, expected in (("auto", 40), ("always", 0), ("never", 80)):
        clean(tmp_path, OFF.model_copy(update={"html": html}))
        found = read_table(tmp_path / "data/clean/documents")["text"].to_pylist()
        assert sum(text.startswith("<p>") for text in found) == expected


def test_every_document_gets_a_verdict_and_every_reason_is_counted(tmp_path: Path) -> None:
    texts = [f"{PROSE} Number {number}." for number in range(60)] + ["Too short.", " \n"]
    corpus(tmp_path, texts)
    metrics = clean(tmp_path, OFF.model_copy(update={"min_words": 20}))
    verdicts = read_table(tmp_path / "data/clean/verdicts").to_pylist()
    assert [verdict["id"] for verdict in verdicts] == [f"a.jsonl:{row}" for row in range(1, 63)]
    assert [(verdict["rule"], verdict["value"], verdict["threshold"]) for verdict in verdicts[-2:]] == [
        ("min_words", 2.0, 20.0),
        ("empty", 0.0, 1.0),
    ]
    assert metrics["documents_in"] == 62 and metrics["documents_out"] == 60
    assert metrics["dropped.min_words"] == 1 and metrics["dropped.empty"] == 1 and metrics["dropped.max_words"] == 0
    assert metrics["bytes_in"] == sum(len(text.encode()) for text in texts)
    assert metrics["bytes_out"] == sum(len(text.encode()) for text in texts[:60])


def test_null_is_dropped_and_nul_is_taken_out_and_both_are_told(tmp_path: Path, capsys) -> None:
    corpus(tmp_path, [f"{PROSE} Number {number}." for number in range(60)] + [None, "one\0two\0 three"])
    metrics = clean(tmp_path)
    assert metrics["dropped.empty"] == 1 and metrics["documents_with_nul"] == 1
    assert (
        "kept 61 of 62 documents; dropped {'empty': 1}; took NUL characters out of 1 document\n"
        in capsys.readouterr().out
    )
    assert "onetwo three" in read_table(tmp_path / "data/clean/documents")["text"].to_pylist()


def test_a_reserved_split_of_few_documents_is_warned_of(tmp_path: Path, capsys) -> None:
    corpus(tmp_path, [f"{PROSE} Number {number}." for number in range(400)])
    few = clean(tmp_path, split=SplitParams(validation=0.3, test=0.01))["documents_test"]
    assert 0 < few < 10
    assert (
        f"clean: warning: {counted(few, 'document')} of 400 reserved for test, figures on so few say little; raise "
        "split.test, for example to 0.05, or take more documents\n"
    ) in (said := capsys.readouterr().out)
    assert "for validation" not in said


def test_the_split_is_that_of_the_raw_text(tmp_path: Path) -> None:
    texts = [f"Some  text {number} \r\n with spaces" for number in range(60)]
    corpus(tmp_path, texts)
    metrics = clean(tmp_path)
    found = read_table(tmp_path / "data/clean/documents")["split"].to_pylist()
    assert found == [split_of(text, HALVES) for text in texts]
    assert metrics["documents_test"] == found.count("test") > 0


def test_bytes_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece, "BATCH_CHARACTERS", 500)
    corpus(tmp_path, [f"{PROSE} Number {number}." for number in range(80)])
    written = []
    for workers in (1, 2):
        shutil.rmtree(tmp_path / ".dvc", ignore_errors=True)  # what finished tasks left
        clean(tmp_path, CleanParams(), workers=workers)
        files = sorted((tmp_path / "data/clean").rglob("*.*"))
        written.append({path.name: path.read_bytes() for path in files if path.is_file()})
    assert written[0] == written[1]


def test_what_later_stages_could_not_use_is_refused_with_the_param_to_change(tmp_path: Path) -> None:
    corpus(tmp_path, ["Too short.", "So is this."])
    with pytest.raises(BadInput, match=r"2 of 2 were dropped by min_words; change clean.min_words \(null"):
        clean(tmp_path, OFF.model_copy(update={"min_words": 20}))
    with pytest.raises(BadInput, match=r"split.validation 0.0001 of 2 documents reserved none for validation; raise"):
        clean(tmp_path, split=SplitParams(validation=0.0001, test=0.0001))
    corpus(tmp_path, [f"document {number}" for number in range(20)])
    with pytest.raises(BadInput, match=r"split\.test 0.0001 of 20 documents reserved none for test"):
        clean(tmp_path, split=SplitParams(validation=0.5, test=0.0001))


def test_shards_are_standard_parquet(tmp_path: Path) -> None:
    corpus(tmp_path, [f"document {number}" for number in range(40)])
    clean(tmp_path)
    table = pq.read_table(tmp_path / "data/clean/documents/00000.parquet")
    assert table.column_names == ["id", "text", "source", "split"]


def put(root: Path, name: str, texts: list[str]) -> None:
    path = root / "inputs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def download(root: Path) -> dict:
    job = Job("download", root, Execution(workers=1))
    job.prepare()
    run_download(job, DownloadParams(source="files"))
    job.publish()
    return json.loads((root / "data/download/manifest.json").read_text())


def done(root: Path, step: str) -> set[str]:
    return {folder.name for folder in (root / ".dvc/tmp/millrace" / step.replace("/", "/tasks/")).glob("*")}


def test_a_changed_file_redoes_its_piece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.pieces.ends_group", lambda name, size, mean: True)
    for number in range(6):
        put(tmp_path, f"{number}.jsonl", [f"{PROSE} {number} {row}" for row in range(20)])
    download(tmp_path)
    clean(tmp_path)
    scans, pieces = done(tmp_path, "download/scans"), done(tmp_path, "clean/pieces")
    assert len(scans) == len(pieces) == 6
    put(tmp_path, "3.jsonl", [f"{PROSE} another {row}" for row in range(20)])
    download(tmp_path)
    clean(tmp_path)
    assert len(done(tmp_path, "download/scans") - scans) == len(done(tmp_path, "clean/pieces") - pieces) == 1
    ids = read_table(tmp_path / "data/clean/documents")["id"].to_pylist()
    assert ids == [f"{number}.jsonl:{row}" for number in range(6) for row in range(1, 21)]


def test_a_large_file_is_cut_and_gives_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl", [f"{PROSE} {row}" for row in range(200)])
    download(tmp_path)
    metrics = clean(tmp_path)
    whole = read_table(tmp_path / "data/clean/documents")
    monkeypatch.setattr("stages.download.files.PIECE_BYTES", 5000)
    monkeypatch.setattr("stages.pieces.PIECE_BYTES", 5000)
    shutil.rmtree(tmp_path / ".dvc")
    manifest = download(tmp_path)
    assert len(manifest["shards"][0]["cuts"]) > 5
    monkeypatch.setattr("stages.pieces.ends_group", lambda name, size, mean: True)
    assert clean(tmp_path) == metrics
    assert len(done(tmp_path, "clean/pieces")) == len(manifest["shards"][0]["cuts"]) + 1
    assert read_table(tmp_path / "data/clean/documents").equals(whole)


def test_samples_show_what_each_rule_dropped(tmp_path: Path) -> None:
    corpus(
        tmp_path, [f"{PROSE} Number {number}." for number in range(60)] + [f"Short {number}." for number in range(9)]
    )
    clean(tmp_path, OFF.model_copy(update={"min_words": 20}))
    samples = json.loads((tmp_path / "data/clean/samples.json").read_text())
    assert samples.keys() == {"min_words"}
    assert len(samples["min_words"]) == 5
    assert all(one["text"].startswith("Short ") and one["threshold"] == 20 for one in samples["min_words"])


def test_language_and_masking_are_asked_for(tmp_path: Path) -> None:
    french = "Le chat dort sur le toit de la maison et personne ne sait pourquoi il le fait chaque jour."
    corpus(tmp_path, [f"{PROSE} Write to me{number}@there.org." for number in range(40)] + [french])
    metrics = clean(tmp_path, OFF.model_copy(update={"languages": ["en"], "mask_pii": True}))
    assert metrics["dropped.languages"] == 1 and metrics["documents_out"] == 40
    texts = read_table(tmp_path / "data/clean/documents")["text"].to_pylist()
    assert set(texts) == {f"{PROSE} Write to email@example.com."}
