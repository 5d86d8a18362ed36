"""`millrace data`: what lies in data/, told as it is, with one line for what is not there."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from stages.clean.params import CleanParams
from stages.clean.stage import run as run_clean
from stages.dedup.params import DedupParams
from stages.dedup.stage import run as run_dedup
from stages.download.params import DownloadParams
from stages.download.stage import run as run_download
from stages.files import file_sha256
from stages.pack.params import EvaluationFile, PackParams
from stages.pack.stage import run as run_pack
from stages.splits import SplitParams, split_of
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run as run_tokenizer
from stages.tokens import TokenRows
from stages.vocabulary import load_tokenizer
from tests.stages.corpus import run_stage

ROOT = Path(__file__).parents[2]
WORDS = [
    f"{a}{b}{c}" for a in ("", "b", "st", "gr") for b in ("an", "el", "ir", "os", "ut") for c in ("a", "en", "ly", "s")
]


def text(seed: int, n_words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words)).capitalize() + "."


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources; wiki:3 is too short, wiki:5 copies wiki:4, news:2 holds text of an evaluation file."""
    root = tmp_path_factory.mktemp("workspace")
    for name in ("params.yaml", "dvc.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    wiki = [text(seed) for seed in range(40)]
    wiki[2], wiki[4] = "Too short.", wiki[3].upper()
    question = text(999, 20)
    news = [text(100 + seed) for seed in range(30)]
    news[1] += f" And then: {question}"
    for name, texts in (("wiki", wiki), ("news", news)):
        (root / "inputs").mkdir(exist_ok=True)
        lines = "".join(json.dumps({"text": each}) + "\n" for each in texts)
        (root / "inputs" / f"{name}.jsonl").write_text(lines)
    evaluation = root / "questions.txt"
    evaluation.write_text(question)
    (root / "data/code").mkdir(parents=True)
    (root / "data/code/dedup.json").write_text("{}")
    run_stage(run_download, root, download=DownloadParams(source="files"))
    splits = (SplitParams(validation=0.1, test=0.1, salt=str(number)) for number in range(100))
    watched = (wiki[0], wiki[2], wiki[3], wiki[4], news[1])
    split = next(split for split in splits if all(split_of(each, split) == "train" for each in watched))
    run_stage(run_clean, root, clean=CleanParams(recipe="none", min_words=20), split=split)
    run_stage(run_dedup, root, dedup=DedupParams())
    run_stage(run_tokenizer, root, tokenizer=TokenizerParams(vocab_size=400))
    named = EvaluationFile(path="questions.txt", sha256=file_sha256(evaluation))
    mixture = {"wiki": 2.0, "news": 1.0}
    run_stage(run_pack, root, pack=PackParams(context_length=64, mixture=mixture, decontaminate=[named]))
    return root


@pytest.fixture
def millrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `millrace data ...` in a folder: exit code, output, errors."""

    def run(root: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["millrace", "data", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_help_is_light_and_shows_what_to_type() -> None:
    code = (
        "import sys; from pipeline import cli; sys.argv = ['millrace', 'data', '--help']; cli.main(); "
        "print(sorted({'torch', 'numpy', 'pyarrow', 'numba', 'pydantic'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert said.endswith("[]\n")
    for words in ("millrace data explain ID", "millrace data validate", "millrace data inspect train 7"):
        assert words in said


# preview


@pytest.mark.parametrize("stage", ["download", "clean", "dedup"])
def test_preview_prints_documents_of_a_stage(workspace: Path, millrace, stage: str) -> None:
    code, out, _ = millrace(workspace, "preview", stage, "-n", "2")
    assert code == 0 and out.count("──") == 2 and "more characters" in out
    code, out, _ = millrace(workspace, "preview", stage, "-n", "500", "--source", "wiki", "--json")
    found = json.loads(out)
    assert {row["source"] for row in found} == {"wiki"}
    assert len(found) == {"download": 40, "clean": 39, "dedup": 38}[stage]
    assert found[0]["text"] == text(0)


def test_preview_of_a_split_and_of_rows(workspace: Path, millrace) -> None:
    _, out, _ = millrace(workspace, "preview", "clean", "--split", "test", "--json")
    assert {row["split"] for row in json.loads(out)} == {"test"}
    _, out, _ = millrace(workspace, "preview", "pack", "-n", "2")
    assert "row 0 of train: 64 slots" in out and "row 1 of train" in out
    assert millrace(workspace, "preview", "download", "--split", "test")[0] == 2
    code, _, error = millrace(workspace, "preview", "clean", "--source", "other")
    assert code == 2 and "no document of data/clean" in error


# validate


def test_validate_names_every_bad_file_and_row(tmp_path: Path, millrace) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    lines = [b'{"text": "a"}', b'{"text": "caf\xe9"}', b'{"txt": "b"}', b"{", b'{"text": 3}', b'{"text": "c"}', b""]
    (inputs / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "\\ud800"}', b'{"text": "d"}']))
    (inputs / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 5000)[:-40])
    (inputs / "c.txt").write_bytes(b"\0\0")
    pq.write_table(pa.table({"content": ["x"]}), inputs / "d.parquet")
    (inputs / "e.txt").write_text("good")
    (inputs / "f.png").write_text("no document")
    code, out, errors = millrace(tmp_path, "validate")
    assert code == 2
    assert (
        "6 files" not in out
        and "5 files" in out
        and "4 files cannot be used; 1 file of other kinds left out: 1 .png (f.png)\n" in out
    )
    problems = [line.removeprefix(f"{inputs}/") for line in errors.splitlines()]
    places = [problem.split(": ")[1] for problem in problems[1:5]]
    assert places == [f"row {row}" for row in (3, 4, 5, 8)] and "a.jsonl: row 2: byte 27 (0xe9)" in problems[0]
    found = ["is not UTF-8", "no column 'text'", "not valid JSON", "must be a string", "lone surrogate"]
    found += ["truncated", "NUL", "no column"]
    assert all(words in problem for problem, words in zip(problems, found, strict=True))
    code, out, _ = millrace(tmp_path, "validate", "--json", str(inputs / "a.jsonl"))
    checked = json.loads(out)["files"]
    assert code == 2 and checked[0]["documents"] == 3 and len(checked[0]["problems"]) == 5


def test_validate_goes_on_behind_what_is_no_file(tmp_path: Path, millrace) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    inputs = tmp_path / "inputs"
    (inputs / "news").mkdir(parents=True)
    (inputs / "a.txt").symlink_to("nowhere.txt")
    os.mkfifo(inputs / "b.txt")
    (inputs / "c").symlink_to("news")
    (inputs / "d.txt").write_bytes(b"\xe9")
    (inputs / "news/e.txt").write_text("good")
    for name in ("f.jsonl", "g.txt"):
        (inputs / "news" / name).touch()
    for name in ("h.pdf", "i.PDF", "j.parquet.gz", "k"):
        (inputs / name).touch()
    code, out, errors = millrace(tmp_path, "validate")
    named = [line.removeprefix(f"{inputs}/").split(": ")[:2] for line in errors.splitlines()]
    assert code == 2 and [name for name, _ in named] == ["a.txt", "b.txt", "c", "d.txt"]
    assert [said.split(",")[0].split(" and ")[0] for _, said in named[:3]] == [
        "a link to nowhere.txt", "a named pipe", "a link to a folder"
    ]  # fmt: skip
    assert out == (
        "4 files, 2 documents, 4 bytes of text; 4 files cannot be used; 2 files without any text: news/f.jsonl, "
        "news/g.txt; 1 document without text, which clean will drop; 4 files of other kinds left out: 2 .pdf (h.pdf, "
        "i.PDF), 1 .parquet.gz (j.parquet.gz), 1 without ending (k)\n"
    )
    code, out, _ = millrace(tmp_path, "validate", "--json")
    assert code == 2 and len(json.loads(out)["no_files"]) == 3
    (inputs / "only").mkdir()
    (inputs / "only/x.docx").touch()
    code, _, error = millrace(tmp_path, "validate", str(inputs / "only"))
    assert code == 2 and error.endswith("no file of documents here, only 1 .docx (x.docx); it reads .txt, .md, .html, "
                                        ".htm, .json, .jsonl, .ndjson, .csv, .parquet, .arrow\n")  # fmt: skip


def test_validate_tells_of_what_clean_will_drop_or_take_out(workspace: Path, tmp_path: Path, millrace) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n{"text": "a\\u0000b"}\n')
    code, out, _ = millrace(workspace, "validate", str(path))
    assert code == 0 and out.endswith(
        "all can be used; 2 documents without text, which clean will drop; 1 document with NUL characters, which clean "
        "will take out\n"
    )


def test_validate_of_good_files_ends_with_0(workspace: Path, millrace) -> None:
    code, out, _ = millrace(workspace, "validate")
    assert code == 0 and out.startswith("2 files, 70 documents, ") and out.endswith("; all can be used\n")
    code, _, error = millrace(workspace, "validate", "--column", "content")
    assert code == 2 and error.count("no column 'content'") == 70
    code, _, error = millrace(workspace, "validate", "nowhere")
    assert code == 2 and "nowhere: not found" in error


# stats


def test_stats_count_by_source_and_split(workspace: Path, millrace) -> None:
    _, out, _ = millrace(workspace, "stats", "--json")
    found = json.loads(out)
    assert list(found) == ["download", "clean", "dedup", "pack"]
    assert [row["documents"] for row in found["download"]] == [30, 40, 70]
    assert found["clean"][-1]["documents"] == sum(row["documents"] for row in found["clean"][:-1]) == 69
    assert found["download"][-1]["bytes"] == sum(
        len(json.loads(line)["text"].encode()) for path in (workspace / "inputs").iterdir() for line in path.open()
    )
    train = {row["source"]: row for row in found["pack"] if row["split"] == "train"}
    assert train["wiki"]["repeated_tokens"] * 2 == train["wiki"]["tokens"]
    assert train["news"]["left_out_tokens"] > 0 and train["news"]["repeated_tokens"] == 0
    assert train["wiki"]["tokens"] + train["news"]["tokens"] == train["(all)"]["tokens"]
    _, out, _ = millrace(workspace, "stats", "clean")
    assert out.splitlines()[1].split()[:4] == ["source", "split", "documents", "bytes"]


# explain


def explained(millrace, workspace: Path, name: str) -> str:
    code, out, error = millrace(workspace, "explain", name)
    assert code == 0, error
    return out


def test_explain_says_why(workspace: Path, millrace) -> None:
    assert explained(millrace, workspace, "wiki.jsonl:3") == (
        "clean  dropped by the rule min_words: measured 2, the limit is 20\n"
    )
    assert "dedup  removed: the same words as wiki.jsonl:" in explained(
        millrace, workspace, "wiki.jsonl:4"
    ) + explained(millrace, workspace, "wiki.jsonl:5")
    out = explained(millrace, workspace, "news.jsonl:2")
    assert "pack   contaminated: shares 8 n-grams with questions.txt, first: '" in out and out.endswith("left out\n")
    out = explained(millrace, workspace, "wiki.jsonl:1")
    assert "clean  kept, of source wiki\nsplit  train\ndedup  kept" in out and "taken 2 times" in out


def test_explain_as_json_and_of_an_id_that_does_not_exist(workspace: Path, millrace) -> None:
    _, out, _ = millrace(workspace, "explain", "--json", "news.jsonl:2")
    facts = json.loads(out)
    assert facts["split"] == "train" and facts["dedup"]["kept"] and facts["pack"]["copies"] == 0
    assert facts["pack"]["contaminated"]["file"] == "questions.txt"
    code, _, error = millrace(workspace, "explain", "news.json:2")
    assert code == 2 and "news.json:2: no document has this id; near ones are news.jsonl:2" in error


# inspect


def test_inspect_shows_the_slots_and_documents_of_a_row(workspace: Path, millrace) -> None:
    rows = TokenRows(workspace / "data/pack/train")
    tokenizer = load_tokenizer(workspace / "data/tokenizer/tokenizer.json")
    corpus = {row["id"]: row["text"] for row in pq.read_table(workspace / "data/clean/documents").to_pylist()}
    pieces: dict[tuple[str, int], list] = {}
    for row in range(rows.n_rows):
        code, out, _ = millrace(workspace, "inspect", "train", str(row), "--json")
        facts = json.loads(out)
        assert code == 0 and facts["slots"] == 64
        assert facts["padding"] == 63 - facts["segments"][-1]["last_slot"]
        for segment in facts["segments"]:
            key = (segment["id"], segment["document"])
            pieces.setdefault(key, []).append((segment["offset"], segment["input_ids"]))
    for (name, _), parts in pieces.items():
        ids = [token for _, own in sorted(parts) for token in own]
        assert tokenizer.decode(ids[1:]) == corpus[name]
    assert sum(name == "wiki.jsonl:1" for name, _ in pieces) == 2, "two copies"
    assert not any(name == "news.jsonl:2" for name, _ in pieces)


def test_inspect_prints_boundaries(workspace: Path, millrace) -> None:
    _, out, _ = millrace(workspace, "inspect", "validation", "0")
    assert "row 0 of validation: 64 slots" in out
    assert "── slots 0-63: document 0 (" in out and "goes on with '" in out and "<|endoftext|>" in out
    code, _, error = millrace(workspace, "inspect", "test", "9999")
    assert code == 2 and "row 9999: test has the rows 0 to" in error


# near


def test_near_finds_the_documents_like_a_text(workspace: Path, millrace, tmp_path: Path) -> None:
    changed = text(7).replace(" ", "  ", 5) + " And a few words more."
    code, out, _ = millrace(workspace, "near", changed, "--json")
    found = json.loads(out)
    assert code == 0 and found[0]["id"] == "wiki.jsonl:8" and 0.9 < found[0]["jaccard"] < 1
    (tmp_path / "text").write_text(changed)
    code, out, _ = millrace(workspace, "near", f"@{tmp_path / 'text'}")
    assert code == 0 and "wiki.jsonl:8" in out and "jaccard" in out
    code, out, _ = millrace(workspace, "near", "words that stand nowhere else in all of this")
    assert code == 0 and out.endswith(
        "no document is like it: whole documents are compared, by words in a row (dedup.ngram of them), and this text "
        "has 9; give as much text as a document has, such as @FILE\n"
    )
    assert "nowhere: No such file" in millrace(workspace, "near", "@nowhere")[2]


# what is not there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preview", "clean"], "data/clean: nothing here yet; run `millrace run clean`"),
        (["stats", "pack"], "data/pack: nothing here yet; run `millrace run pack`"),
        (["stats"], "no data stage has run here yet; run `millrace run download`"),
        (["explain", "x"], "data/clean: nothing here yet"),
        (["inspect"], "data/pack: nothing here yet"),
        (["near", "some text"], "data/clean: nothing here yet"),
        (["preview", "train"], "'train' is not one of"),
    ],
)
def test_a_stage_that_has_not_run_is_named(tmp_path: Path, millrace, arguments: list[str], message: str) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    code, _, error = millrace(tmp_path, *arguments)
    assert code == 2 and message in error
