"""clean: what normalisation changes and keeps, which rule drops what, and the split of every document."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.clean import stage as clean_stage
from stages.clean.html_text import html_to_text
from stages.clean.params import CleanParams
from stages.clean.rules import RULES, Failure, Page, first_failure
from stages.clean.text import normalise
from stages.documents import read_table
from stages.download.params import DownloadParams
from stages.download.stage import run as run_download
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.splits import SplitParams, split_of

OFF = CleanParams(**dict.fromkeys(RULES))  # type: ignore[arg-type]
HALVES = SplitParams(validation=0.3, test=0.3)


def corpus(root: Path, texts: list[str]) -> None:
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


# Text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("a\0b\x07c\ufeff", "abc"),
        ("a\u00a0b", "a b"),
        ("if x:  \n\treturn 1\n    y = 2", "if x:\n\treturn 1\n    y = 2"),
        ("one\n\ntwo\n\n\nthree\n\n\n\n\n\nfour", "one\n\ntwo\n\n\nthree\n\n\nfour"),
        ("\n \n    indented\n\n", "    indented"),
        (" \n\t\n", ""),
    ],
)
def test_normalising_keeps_paragraphs_and_indentation(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not [c for c in once if unicodedata.category(c) in ("Cc", "Zs") and c not in "\n\t "]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<h1>Sum</h1><p>Adds <b>two</b>  numbers.</p><pre>a\n  + b</pre>", "Sum\n\nAdds two numbers.\n\na\n  + b"),
        ("<p>a<br>b</p>\n<ul><li>x</li> <li>y</li></ul>", "a\nb\n\nx\ny"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        (
            "<head><title>T</title></head><script>f()</script><style>p{}</style><p>1 &lt; 2 &amp; caf&eacute;",
            "1 < 2 & café",
        ),
        ("<!-- note -->plain", "plain"),
        ("", ""),
    ],
)
def test_html_becomes_text(html: str, expected: str) -> None:
    assert html_to_text(html) == expected


def test_deep_html_does_not_end_in_a_recursion_error() -> None:
    assert html_to_text("<i>" * 5000 + "deep") == "deep"


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


# Rules


def test_measures_are_what_they_say() -> None:
    page = Page("a b a b a c")
    assert page.n_words() == 6
    assert page.mean_word_length() == 1
    assert page.top_ngram_ratio(2) == pytest.approx(2 * 2 / 6)
    assert Page("one two three").top_ngram_ratio(2) == 0
    assert Page("one 2 3.5 x4 -- é").alphabetic_ratio() == pytest.approx(3 / 6)
    assert Page("abcd\n  abcd\nxy").duplicate_line_ratio() == pytest.approx(4 / 10)
    assert Page("abc\n\nabc\n\n\nde").duplicate_paragraph_ratio() == pytest.approx(3 / 8)


PROSE = (
    "The quick brown fox jumps over a lazy dog while seven wizards quietly mix strange potions beneath old bridges "
    "and nobody in town remembers why those lanterns burn."
)
DROPPED = {
    "min_words": "Too short.",
    "max_words": PROSE,
    "min_mean_word_length": " ".join(chr(97 + i % 26) + chr(97 + i // 26) for i in range(60)),
    "max_mean_word_length": " ".join(f"{chr(97 + i)}" * 15 for i in range(24)),
    "min_alphabetic_ratio": " ".join(str(1000 + i) for i in range(60)),
    "max_duplicate_line_ratio": "\n".join(sorted(PROSE.split()) * 3),
    "max_duplicate_paragraph_ratio": "\n\n".join([PROSE.replace(" a ", "\n"), PROSE.replace(" a ", "\n")] * 2),
    "max_top_2gram_ratio": " ".join(f"hello there {word}" for word in PROSE.split()),
    "max_top_3gram_ratio": " ".join(f"hello there you {word}" for word in PROSE.split()),
    "max_top_4gram_ratio": " ".join(f"hello there you all {word}" for word in PROSE.split()),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_drops_and_can_be_off(rule: str) -> None:
    threshold = 10 if rule == "max_words" else CleanParams.model_fields[rule].default
    only = OFF.model_copy(update={rule: threshold})
    failure = first_failure(DROPPED[rule], only)
    assert failure and failure.rule == rule and failure.threshold == threshold
    assert first_failure(PROSE, only) is None or rule == "max_words"
    assert first_failure(DROPPED[rule], OFF) is None


def test_a_document_without_a_word_is_always_dropped() -> None:
    assert first_failure("", OFF) == Failure("empty", 0.0, 1.0)


def test_contradicting_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="min_words 30 is above max_words 20"):
        CleanParams(min_words=30, max_words=20)


# The stage


def test_every_document_gets_a_verdict_and_every_reason_is_counted(tmp_path: Path) -> None:
    texts = [f"{PROSE} Number {number}." for number in range(60)] + ["Too short.", " \n"]
    corpus(tmp_path, texts)
    metrics = clean(tmp_path, CleanParams())
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


def test_the_split_is_that_of_the_raw_text(tmp_path: Path) -> None:
    texts = [f"Some  text {number} \r\n with spaces" for number in range(60)]
    corpus(tmp_path, texts)
    metrics = clean(tmp_path)
    found = read_table(tmp_path / "data/clean/documents")["split"].to_pylist()
    assert found == [split_of(text, HALVES) for text in texts]
    assert metrics["documents_test"] == found.count("test") > 0


def test_bytes_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_stage, "BATCH_CHARACTERS", 500)
    corpus(tmp_path, [f"{PROSE} Number {number}." for number in range(80)])
    written = []
    for workers in (1, 2):
        clean(tmp_path, CleanParams(), workers=workers)
        files = sorted((tmp_path / "data/clean").rglob("*.*"))
        written.append({path.name: path.read_bytes() for path in files if path.is_file()})
    assert written[0] == written[1]


def test_what_later_stages_could_not_use_is_refused_with_the_param_to_change(tmp_path: Path) -> None:
    corpus(tmp_path, ["Too short.", "So is this."])
    with pytest.raises(BadInput, match=r"2 of 2 were dropped by min_words; change clean.min_words \(null"):
        clean(tmp_path, CleanParams())
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
