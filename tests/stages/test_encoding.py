"""encoding: cutting a text into pieces and looking them up gives the ids that the tokenizer gives."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from stages import encoding
from stages.encoding import PIECE, Encoder, cuts_at_pieces
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run
from stages.vocabulary import load_tokenizer
from tests.stages.corpus import Document, prose, run_stage, write_corpus

# One or two of every kind that the split pattern tells apart, of ASCII and beyond.
KINDS = ["a", "s", "1", " ", "\t", "\n", "\r", ".", "'", "é", "ſ", "中", "١", "\u0301", "\xa0", "\x85", "\x1c", "\x00"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    texts = [prose(seed, 100) for seed in range(20)] + [f"{a}{b}" * 9 for a, b in itertools.product(KINDS, repeat=2)]
    write_corpus(root, [Document(f"d{number}", text) for number, text in enumerate(texts)])
    return run_stage(run, root, tokenizer=TokenizerParams(vocab_size=600)) / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(path) -> Tokenizer:
    return load_tokenizer(path)


def assert_equal(tokenizer: Tokenizer, texts: list[str], encoder: Encoder | None = None) -> None:
    ids = (encoder or Encoder(tokenizer))(texts)
    for text, encoded, theirs in zip(texts, ids, tokenizer.encode_batch_fast(texts), strict=True):
        assert encoded.tolist() == theirs.ids, (text, PIECE.findall(text))


def test_the_example_of_the_module():
    pieces = ["don", "'t", " panic", ":", " ", "12345", " cafés", " are"]
    assert PIECE.findall("don't panic: 12345 cafés are") == pieces


def test_all_short_texts(tokenizer):
    assert cuts_at_pieces(tokenizer)
    assert_equal(tokenizer, ["".join(text) for n in (0, 1, 2, 3) for text in itertools.product(KINDS, repeat=n)])


@pytest.mark.parametrize("kinds", ["a \n.'s", "a \n\r1", "a \n.é", " \n\xa0aé"])
def test_all_texts_of_five_of_these_kinds(tokenizer, kinds):
    assert_equal(tokenizer, ["".join(text) for text in itertools.product(kinds, repeat=5)])


def test_any_text(tokenizer):
    encoder = Encoder(tokenizer)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.text(st.sampled_from(KINDS) | st.characters(codec="utf-8"), max_size=40), max_size=4))
    def check(texts):
        assert_equal(tokenizer, texts, encoder)

    check()


def test_a_text_that_cannot_be_encoded_leaves_nothing_behind(tokenizer):
    encoder = Encoder(tokenizer)
    with pytest.raises(TypeError):
        encoder(["half a pair \ud800", "of surrogates"])
    assert_equal(tokenizer, ["half a pair", "of other words"], encoder)


def test_a_full_table_is_forgotten(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "MAX_IDS", 50)
    encoder = Encoder(tokenizer)
    for seed in range(5):
        assert_equal(tokenizer, [prose(seed, 100), prose(seed + 1, 100)], encoder)
        assert len(encoder.numbers) < 50 + 200


def changed(path: Path, **changes) -> Tokenizer:
    described = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps({**described, **changes}))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_other_tokenizers_encode_by_themselves(path):
    split = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model = {**json.loads(path.read_text(encoding="utf-8"))["model"], "dropout": 1.0}
    texts = [prose(seed, 50).upper() for seed in range(3)]
    for change in ({"pre_tokenizer": split}, {"pre_tokenizer": None}, {"normalizer": {"type": "Lowercase"}}):
        other = changed(path, **change)
        assert not cuts_at_pieces(other)
        assert_equal(other, texts)
    assert not cuts_at_pieces(changed(path, model=model))


def test_no_special_token_is_added_and_no_text_cut_off(path, tmp_path):
    other = Tokenizer.from_file(str(path))
    other.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 2)])
    other.enable_truncation(10)
    other.enable_padding(length=1000)
    other.save(str(tmp_path / "tokenizer.json"))
    text, encoder = prose(0, 100), Encoder(load_tokenizer(tmp_path / "tokenizer.json"))
    assert encoder([text])[0].tolist() == load_tokenizer(path).encode(text).ids
