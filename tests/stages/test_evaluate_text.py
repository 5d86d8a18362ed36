"""From tokens to bytes and events, and the baselines on them."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.errors import BadInput
from stages.evaluate.baselines import baselines
from stages.evaluate.events import Events, events_of_documents, in_bytes
from stages.evaluate.token_bytes import TokenBytes

TEXTS = [
    "the cat sat on the mat\n",
    "the dog, the cat and the 鼠 🐭\n\n  end",
    "x = [1, 2]\n",
    "ÄÖÜ é\u0301 \t\x7f",
] * 3
UNKNOWN = 257  # in the alphabet of bytes


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> TokenBytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|user|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return TokenBytes(path)


def encode(table: TokenBytes, text: str) -> np.ndarray:
    return np.array([*table.tokenizer.encode(text, add_special_tokens=False).ids, table.end_of_text])


def documents(table: TokenBytes, texts: list[str]) -> Events:
    encoded = [encode(table, text) for text in texts]
    return events_of_documents(encoded, table.end_of_text, table.tokenizer.get_vocab_size())


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_tokens_give_back_the_bytes_of_any_text(table, text):
    for case in (text, f"<|endoftext|>{text}<|user|>"):
        tokens = encode(table, case)
        assert table.text_bytes(tokens) == case.encode()
        assert table.n_bytes(tokens) == len(case.encode())


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(path))
    with pytest.raises(BadInput, match="not a byte-level tokenizer"):
        TokenBytes(path)


def test_documents_stand_behind_two_ends_and_close_with_one():
    events = events_of_documents([np.array([5, 6, 0]), np.array([0]), np.array([7, 0])], 0, vocab_size=9)
    assert events.symbols.tolist() == [0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 7, 0]
    assert "".join("x" if event else "." for event in events.is_event) == "..xxx..x..xx"
    assert [int(key) for key in events.keys(2)] == [5, 56, 60, 0, 7, 70], "base 10: one digit a symbol"


def test_bytes_are_the_same_events_in_another_alphabet(table):
    tokens = documents(table, TEXTS[:2])
    as_bytes = in_bytes(tokens, table)
    expected = [*TEXTS[0].encode(), 256, *TEXTS[1].encode(), 256]
    assert as_bytes.labels().tolist() == expected
    assert as_bytes.symbols[:2].tolist() == [256, 256]
    cut = Events(np.array([300, *encode(table, " the")]), np.array([False, False, True]), 300)
    assert in_bytes(cut, table).symbols.tolist() == [UNKNOWN, *b" the", 256]


def test_a_vocabulary_too_large_for_packed_ngrams_is_refused():
    with pytest.raises(BadInput, match="too large for n-grams of order 3"):
        Events(np.zeros(3, np.int64), np.array([False, False, True]), 3_000_000).keys(3)


def test_baselines_learn_from_training_text(table):
    train, test = documents(table, TEXTS[:3] * 5), documents(table, TEXTS[1:3])
    nothing = events_of_documents([encode(table, "")], table.end_of_text, train.vocab_size)
    before, after = baselines(nothing, test, table), baselines(train, test, table)
    assert all(after[key] < 0.7 * before[key] for key in after)


def test_zstd_is_the_size_of_a_frame_that_the_dictionary_decodes(table):
    train, test = documents(table, TEXTS[:3]), documents(table, TEXTS[3:5])
    text = b"".join(t.encode() + b"\0" for t in TEXTS[3:5])
    dictionary = zstandard.ZstdCompressionDict(b"".join(t.encode() + b"\0" for t in TEXTS[:3]))
    frame = zstandard.ZstdCompressor(level=19, dict_data=dictionary).compress(text)
    n_bytes = len(text) - 2
    assert baselines(train, test, table)["baseline_zstd"] == pytest.approx(8 * len(frame) / n_bytes, rel=0.1)
