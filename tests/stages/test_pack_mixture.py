"""Sources in the proportions asked for, the same documents each time, reserved text untouched; evaluation text out."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.execution import Execution
from stages.files import file_sha256
from stages.pack.decontaminate import Index, index_of, ngrams_of, shared_ngrams
from stages.pack.mixture import copies_of, fraction_of
from stages.pack.params import EvaluationFile, PackParams
from stages.pack.stage import run
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run as run_tokenizer
from stages.tokens import TokenRows
from stages.vocabulary import load_tokenizer
from tests.stages.corpus import ONE_WORKER, Document, prose, run_stage, write_corpus

SPLITS = ("train", "validation", "test")
QUESTION = "which of the three old rivers that meet below the town of Passau is the longest one"
ANSWER = "Which of the three old rivers -- that meet below the town of Passau -- is, today, the LONGEST?"


def documents() -> list[Document]:
    splits = ["train", "train", "validation", "train", "test"]
    found = [Document(f"d{number}", prose(number, 20 + number % 30), splits[number % 5]) for number in range(100)]
    found[3] = found[3]._replace(text=f"{found[3].text}\n\n{ANSWER} The Danube.")
    found[2] = found[2]._replace(text=f"{found[2].text} {ANSWER}")  # of the validation split
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents d0, d2, d4.. are of the source even, the others of odd."""
    root = tmp_path_factory.mktemp("workspace")
    write_corpus(root, documents(), n_shards=3)
    for path in (root / "data/clean/documents").iterdir():
        table = pq.read_table(path)
        sources = ["odd" if int(name[1:]) % 2 else "even" for name in table["id"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("source"), "source", pa.array(sources)), path)
    run_stage(run_tokenizer, root, tokenizer=TokenizerParams(vocab_size=300))
    (root / "questions.jsonl").write_text(json.dumps({"text": QUESTION}) + '\n{"text": "too short to find"}\n')
    return root


def packed(root: Path, execution: Execution = ONE_WORKER, **values: object) -> Path:
    return run_stage(run, root, execution, pack=PackParams(context_length=32, shard_tokens=1 << 10, **values))  # type: ignore[arg-type]


def texts(root: Path, split: str = "train") -> list[str]:
    tokenizer = load_tokenizer(root / "data/tokenizer/tokenizer.json")
    return [tokenizer.decode(own[:-1].tolist()) for own in TokenRows(root / "data/pack" / split).documents()]


def of_source(source: str) -> list[Document]:
    own = [document for document in documents() if document.split == "train"]
    return [document for document in own if (int(document.id[1:]) % 2 == 1) == (source == "odd")]


# Mixtures


def test_sources_are_repeated_and_thinned_as_asked(root: Path) -> None:
    packed(root, mixture={"even": 2.5, "odd": 0.3})
    expected = []
    for document in documents():
        if document.split == "train":
            even = int(document.id[1:]) % 2 == 0
            copies = 2 + (fraction_of(document.id) < 0.5) if even else int(fraction_of(document.id) < 0.3)
            expected += [document.text] * copies
    assert texts(root) == expected, "copies are documents of their own, side by side in number"


def test_reserved_documents_are_neither_repeated_nor_thinned(root: Path) -> None:
    out = packed(root)
    expected = {path.name: path.read_bytes() for path in (out / "test").iterdir() if path.suffix == ".arrow"}
    validation = texts(root, "validation")
    sha256 = json.loads((out / "metrics.json").read_text())["eval_sha256"]
    packed(root, mixture={"even": 3, "odd": 0})
    assert {path.name: path.read_bytes() for path in (out / "test").iterdir() if path.suffix == ".arrow"} == expected
    assert texts(root, "validation") == validation
    assert json.loads((out / "metrics.json").read_text())["eval_sha256"] == sha256


def test_tokens_are_accounted_for(root: Path) -> None:
    alone = json.loads((packed(root) / "metrics.json").read_text())
    out = packed(root, mixture={"even": 2.5, "odd": 0.3})
    metrics = json.loads((out / "metrics.json").read_text())
    assert alone["repeated_tokens"] == alone["left_out_tokens"] == 0
    assert metrics["tokens_train"] == alone["tokens_train"] + metrics["repeated_tokens"] - metrics["left_out_tokens"]
    assert metrics["dropped_tokens"] == 0 == metrics["needless_cuts"]
    index = json.loads((out / "train/index.json").read_text())
    assert sum(source["tokens"] for source in index["sources"].values()) == metrics["tokens_train"]
    assert sum(source["documents"] for source in index["sources"].values()) == index["documents"]
    record = pq.read_table(out / "documents/train.parquet")
    assert record["id"].to_pylist() == [document.id for document in documents() if document.split == "train"]
    assert np.dot(record["tokens"].to_numpy(), record["copies"].to_numpy()) == metrics["tokens_train"]
    assert np.dot(record["bytes"].to_numpy(), record["copies"].to_numpy()) == metrics["bytes_train"]
    assert alone["bytes_train"] == sum(len(doc.text.encode()) for doc in documents() if doc.split == "train")


def test_rows_of_a_mixture_depend_on_no_number_of_workers(root: Path) -> None:
    named = [EvaluationFile(path="questions.jsonl", sha256=file_sha256(root / "questions.jsonl"))]

    def contents(workers: int) -> dict[str, bytes]:
        scratch = str(root / f"scratch{workers}")
        out = packed(root, Execution(workers=workers, scratch=scratch), mixture={"even": 1.5}, decontaminate=named)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert contents(1) == contents(2)


def test_a_mixture_encodes_nothing_again(root: Path) -> None:
    packed(root)
    folders = {path: path.stat().st_ino for path in (root / ".dvc/tmp/millrace/pack/tasks/encoded").iterdir()}
    packed(root, mixture={"even": 7})
    assert {path: path.stat().st_ino for path in (root / ".dvc/tmp/millrace/pack/tasks/encoded").iterdir()} == folders


@given(st.floats(0, 5), st.floats(0, 5), st.lists(st.text(max_size=5), unique=True, min_size=1))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_more_repeats_keep_what_fewer_took(first: float, second: float, names: list[str]) -> None:
    table = pa.table({"id": names, "source": ["s"] * len(names)})
    low, high = sorted((first, second))
    fewer, more = (copies_of([table], {"s": repeats}, frozenset())[0] for repeats in (low, high))
    assert (fewer <= more).all()
    assert set(fewer.tolist()) <= {int(low), int(low) + 1}


def test_fractions_are_even() -> None:
    fractions = np.array([fraction_of(f"news/a.jsonl:{number}") for number in range(20_000)])
    counts = np.histogram(fractions, 10, (0, 1))[0]
    assert abs(counts - 2000).max() < 200


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"evn": 2}, "no training document has the source 'evn'; did you mean even. There are even, odd"),
        ({"even": 0, "odd": 0}, "leave none of 60 training documents"),
    ],
)
def test_an_impossible_mixture_is_refused(root: Path, mixture: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        packed(root, mixture=mixture)


def test_an_unknown_source_is_refused_before_anything_is_encoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.pack.stage.encode_parts", lambda *_: pytest.fail("encoded"))
    with pytest.raises(BadInput, match="pack.mixture: no training document has the source 'evn'; did you mean even"):
        packed(root, mixture={"odd": 2, "evn": 2})


@pytest.mark.parametrize("value", [{"a": -1}, {"a": float("nan")}, {"a": "2"}, {"a": 5000}])
def test_repeats_are_numbers(value: dict) -> None:
    with pytest.raises(ValueError, match="mixture"):
        PackParams(mixture=value)


# Decontamination


def evaluation(root: Path, name: str = "questions.jsonl", **values: str) -> list[EvaluationFile]:
    return [EvaluationFile(path=name, sha256=file_sha256(root / name), **values)]


def test_training_documents_with_evaluation_text_go_and_are_told(root: Path, capsys) -> None:
    out = packed(root, decontaminate=evaluation(root))
    assert json.loads((out / "metrics.json").read_text())["contaminated_documents"] == 1
    assert not any("Danube" in text for text in texts(root)) and len(texts(root)) == 59
    assert any("Passau" in text for text in texts(root, "validation")), "reserved text is never removed"
    assert "questions.jsonl: 5 13-grams of 2 texts; 1 of less than 13 words can find nothing" in capsys.readouterr().out
    (record,) = pq.read_table(out / "documents/contaminated.parquet").to_pylist()
    assert record["id"] == "d3" and record["file"] == "questions.jsonl" and record["ngrams"] == 2
    assert record["first"] == "which of the three old rivers that meet below the town of passau"
    assert packed(root, decontaminate=evaluation(root), decontaminate_ngram=17)
    assert any("Danube" in text for text in texts(root)), "no 17 words in common"


def test_without_evaluation_files_the_record_is_empty(root: Path) -> None:
    out = packed(root)
    assert json.loads((out / "metrics.json").read_text())["contaminated_documents"] == 0
    assert pq.read_table(out / "documents/contaminated.parquet").num_rows == 0


def test_files_of_every_kind(root: Path) -> None:
    (root / "q.txt").write_text(QUESTION)
    pq.write_table(pa.table({"question": [None, QUESTION]}), root / "q.parquet")
    for named in (evaluation(root, "q.txt"), evaluation(root, "q.parquet", column="question")):
        out = packed(root, decontaminate=named)
        assert pq.read_table(out / "documents/contaminated.parquet")["id"].to_pylist() == ["d3"]


def test_evaluation_files_are_inputs_named_by_their_content(root: Path) -> None:
    sha256 = file_sha256(root / "questions.jsonl")
    with pytest.raises(BadInput, match=rf"questions.jsonl: its sha256 is {sha256}, not given; .* paste it"):
        packed(root, decontaminate=[EvaluationFile(path="questions.jsonl")])
    with pytest.raises(BadInput, match=rf"its sha256 is {sha256}, not {'0' * 64}"):
        packed(root, decontaminate=[EvaluationFile(path="questions.jsonl", sha256="0" * 64)])
    with pytest.raises(BadInput, match=r"question.jsonl: not there; did you mean questions.jsonl\?"):
        packed(root, decontaminate=[EvaluationFile(path="question.jsonl")])
    with pytest.raises(ValueError, match="64 digits"):
        EvaluationFile(path="x", sha256="abc")


WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(st.lists(WORDS, max_size=4), WORDS)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_shared_ngrams_are_those_of_sets_of_tuples(reserved: list[list[str]], words: list[str]) -> None:
    n = 3
    known = {tuple(own[at : at + n]) for own in reserved for at in range(len(own) - n + 1)}
    shared = [at for at in range(len(words) - n + 1) if tuple(words[at : at + n]) in known]
    index = Index.of([ngrams_of(pa.array([" ".join(own) for own in reserved], pa.string()), n)[0]])
    found = list(shared_ngrams(pa.array(["other", " ".join(words)]), index, ["file"], n))
    expected = {"file": "file", "ngrams": len(shared)}
    if shared:
        expected["first"] = " ".join(words[shared[0] : shared[0] + n])
    assert found == ([(1, expected)] if shared else [])


def test_the_first_file_that_holds_an_ngram_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four")
    (tmp_path / "b.txt").write_text("two three four five")
    index = index_of(tmp_path, [EvaluationFile(path="a.txt"), EvaluationFile(path="b.txt")], 3)
    texts = pa.array(["Two, three: four!", "nothing", "three four five"])
    found = [(text, shared["file"]) for text, shared in shared_ngrams(texts, index, ["a", "b"], 3)]
    assert found == [(0, "a"), (2, "b")]


# The shards are what others read


def test_datasets_opens_the_shards_as_they_are(root: Path, tmp_path: Path) -> None:
    out = packed(root)
    files = [str(path) for path in sorted((out / "train").glob("*.arrow"))]
    rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    ours = TokenRows(out / "train")
    assert rows.num_rows == ours.n_rows and len(files) > 1
    assert rows.features["input_ids"].length == 32 and rows.features["input_ids"].feature.dtype == "uint16"
    batch = ours.batch(np.arange(ours.n_rows))
    assert rows[:]["input_ids"] == batch.inputs.tolist()
    assert [sum(lengths) for lengths in rows[:]["lengths"]] == (batch.segments >= 0).sum(1).tolist()
