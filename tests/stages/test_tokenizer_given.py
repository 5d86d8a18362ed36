"""tokenizer: files of somebody else's, special tokens added later, and the report on what a vocabulary is worth."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from pipeline.cli import cli
from stages.encoding import Encoder
from stages.errors import BadInput
from stages.evaluate.token_bytes import TokenBytes
from stages.files import file_sha256
from stages.kept import kept_parts
from stages.tokenizer.migrate import migrate
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.sample import read_sample
from stages.tokenizer.stage import run
from stages.vocabulary import load_tokenizer, roles_of
from tests.stages.corpus import Document, prose, run_stage, write_corpus
from tests.stages.tokenizer_corpus import EXTRA, PARAMS, TORTURE, documents, foreign, metrics, taking, train


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("workspace"), PARAMS.model_copy(update={"extra_special_tokens": EXTRA}))


@pytest.fixture(scope="module")
def tokenizer(out) -> Tokenizer:
    return load_tokenizer(out / "tokenizer.json")


# A file of somebody else's


def test_a_file_is_taken_as_it_is(tmp_path):
    path = foreign(tmp_path / "theirs.json", ["<|endoftext|>", "<|pad|>"])
    out = train(tmp_path, taking(path))
    assert (out / "tokenizer.json").read_bytes() == path.read_bytes()
    assert roles_of(out / "tokenizer.json") == ("<|endoftext|>", "<|pad|>")
    assert metrics(out)["vocab_size"] == 258
    assert metrics(out)["bytes_per_token"] == 1


def test_special_tokens_of_other_names_have_their_roles_noted(tmp_path):
    path = foreign(tmp_path / "theirs.json", ["</s>", "<fill>"])
    out = train(tmp_path, taking(path, end_of_text="</s>"))
    assert roles_of(out / "tokenizer.json") == ("</s>", "</s>")
    out = train(tmp_path, taking(path, end_of_text="</s>", padding="<fill>"))
    assert roles_of(out / "tokenizer.json") == ("</s>", "<fill>")
    assert Tokenizer.from_file(str(out / "tokenizer.json")).to_str() == Tokenizer.from_file(str(path)).to_str()
    assert TokenBytes(out / "tokenizer.json").end_of_text == 256


def test_a_file_that_lacks_something_is_refused(tmp_path):
    good = foreign(tmp_path / "good.json", ["</s>"])
    model = json.loads(good.read_text())["model"]
    write_corpus(tmp_path, documents())
    for params, message in (
        (taking(good), "has no special token '<|endoftext|>'; name one of its own: </s>"),
        (taking(good, end_of_text="</s>", padding="<p>"), "tokenizer.padding: .* has no special token '<p>'"),
        (
            taking(good).model_copy(update={"file_sha256": "0" * 64}),
            "if it is the one you mean, set tokenizer.file_sha",
        ),
        (TokenizerParams(file="nothing.json", file_sha256="0" * 64), "nothing.json is not there"),
        (taking(foreign(tmp_path / "a", ["</s>"], decoder=None), end_of_text="</s>"), "is not byte-level"),
        (taking(foreign(tmp_path / "b", ["</s>"], added_tokens=3)), "is no tokenizer.json"),
        (
            taking(foreign(tmp_path / "c", ["</s>"], model={**model, "vocab": {"a": 0}}), end_of_text="</s>"),
            "lacks a token for some byte",
        ),
    ):
        with pytest.raises(BadInput, match=message.replace("|", "[|]")):
            run_stage(run, tmp_path, tokenizer=params)


def test_impossible_params_of_a_file_are_refused():
    for params, message in (
        ({"file": "a.json"}, "file_sha256 must be the sha256 of a.json"),
        ({"end_of_text": "</s>"}, "end_of_text is read for tokenizer.file alone"),
        ({"file": "a", "file_sha256": "0" * 64, "extra_special_tokens": ["<a>"]}, "millrace tokenizer migrate"),
        ({"type": "character", "engine": "hf"}, "engine hf trains type bpe alone"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenizerParams(**params)


# Migration


def test_migration_keeps_every_id(tmp_path, out, tokenizer):
    target = tmp_path / "more.json"
    migrated = migrate(out / "tokenizer.json", target, ["<|new|>", "[NEWER]"])
    after = load_tokenizer(target)
    assert migrated == (file_sha256(target), {"<|new|>": 480, "[NEWER]": 481})
    assert after.get_vocab() == {**tokenizer.get_vocab(), "<|new|>": 480, "[NEWER]": 481}
    for text in [*TORTURE, "<|new|>", prose(0, 100)]:
        assert after.encode(text).ids == tokenizer.encode(text).ids
    assert Encoder(after).compiled
    assert train(tmp_path, taking(target)).joinpath("tokenizer.json").read_bytes() == target.read_bytes()


def test_migration_keeps_roles_and_refuses_what_it_cannot_add(tmp_path, out):
    path = foreign(tmp_path / "theirs.json", ["</s>"])
    taken = train(tmp_path, taking(path, end_of_text="</s>")) / "tokenizer.json"
    migrate(taken, tmp_path / "more.json", ["<new>"])
    assert roles_of(tmp_path / "more.json") == ("</s>", "</s>")
    for target, tokens, message in (
        ("more.json", ["<a>"], "more.json: is there already"),
        ("b.json", ["<|pad|>"], "has the id 1 in"),
        ("b.json", ["word"], "could also be learned from text"),
        ("b.json", ["<a>", "<a>"], "name each special token to add once"),
    ):
        with pytest.raises(BadInput, match=message):
            migrate(out / "tokenizer.json", tmp_path / target, tokens)


def test_the_command_prints_the_params_that_use_the_file(tmp_path, out):
    target = tmp_path / "more.json"
    given = ["tokenizer", "migrate", "<|new|>", "--from", str(out / "tokenizer.json"), "--to", str(target)]
    printed = CliRunner().invoke(cli, given).output
    assert "480  <|new|>" in printed
    assert f"tokenizer.file_sha256: {file_sha256(target)}" in printed


# The report


def test_the_report_counts_by_source_and_by_script(tmp_path, out):
    corpus = [Document(f"d{n}", "word слово слово 日本語 ") for n in range(30)]
    report = json.loads(
        (train(tmp_path, TokenizerParams(compare=[str(out / "tokenizer.json")]), corpus) / "report.json").read_text()
    )
    this, other = report["tokenizers"]["this"], report["tokenizers"][str(out / "tokenizer.json")]
    assert this["sources"]["test"] == this["sources"]["all"]
    assert this["sources"]["all"]["bytes"] == 30 * len(corpus[0].text.encode()) == other["sources"]["all"]["bytes"]
    assert {script: size["words"] for script, size in this["scripts"].items()} == {
        "cyrillic": 60,
        "cjk": 30,
        "latin": 30,
    }
    assert this["scripts"]["latin"]["tokens_per_word"] == 1 < other["scripts"]["cyrillic"]["tokens_per_word"]
    assert other["sha256"] == file_sha256(out / "tokenizer.json")
    assert report["longest_tokens"][0]["text"].strip() == "слово"
    page = (tmp_path / "data/tokenizer/report.html").read_text()
    assert "cyrillic" in page and "слово" in page


def test_a_tokenizer_to_compare_with_that_is_none_is_named(tmp_path):
    with pytest.raises(BadInput, match="tokenizer.compare: .*nothing.json: not a tokenizer.json"):
        train(tmp_path, PARAMS.model_copy(update={"compare": ["nothing.json"]}))


def test_the_sample_is_every_nth_document(tmp_path):
    write_corpus(tmp_path, [Document(f"d{n}", f"{n} " * 100) for n in range(200)], n_shards=3)
    shards = kept_parts(tmp_path / "data/clean/documents", tmp_path / "data/dedup/keep.parquet")
    assert len(read_sample(shards).texts) == 200
    assert 10 < len(read_sample(shards, sample_bytes=20_000).texts) < 100
