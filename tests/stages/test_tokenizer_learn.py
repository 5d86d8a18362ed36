"""tokenizer: what is learned from text, and that it is what Hugging Face's trainer learns."""

import itertools
import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from stages.entry import Job
from stages.kept import kept_parts
from stages.pretoken_rules import GPT4, Rule
from stages.tokenizer.count import count_texts, count_words
from stages.tokenizer.learn import learn
from stages.tokenizer.params import TokenizerParams
from stages.vocabulary import byte_characters, load_tokenizer
from tests.stages.corpus import ONE_WORKER, Document, write_corpus
from tests.stages.tokenizer_corpus import (
    EXTRA,
    PARAMS,
    decoded,
    documents,
    metrics,
    pieces,
    train,
)

# What is learned


def test_text_is_split_as_the_stage_says():
    assert pieces("don't panic: 12345") == ["don", "'t", " panic", ":", " ", "123", "45"]
    assert pieces("12345", max_digits=1) == list("12345")
    assert pieces("a\n\n    b") == ["a", "\n\n", "   ", " b"]


def test_no_token_has_more_digits_than_asked(tmp_path):
    corpus = [Document("d", "1234567 1234567 1234567 " * 20)]
    out = train(tmp_path, TokenizerParams(max_digits=2, vocab_size=300), corpus)
    vocabulary = load_tokenizer(out / "tokenizer.json").get_vocab()
    assert max(sum(map(str.isdigit, token)) for token in vocabulary) == 2


def test_a_small_corpus_gives_fewer_merges(tmp_path):
    out = train(tmp_path, TokenizerParams(vocab_size=4096), [Document("d", "abab abab")])
    assert metrics(out)["vocab_size"] == 4 + 256 + 2, "ab and abab"
    assert load_tokenizer(out / "tokenizer.json").get_vocab_size() == 262


def test_rare_pairs_are_not_merged(tmp_path):
    out = train(tmp_path, TokenizerParams(min_frequency=3), [Document("d", "xy xy zw zw zw")])
    assert {"zw", "Ġzw"} & set(load_tokenizer(out / "tokenizer.json").get_vocab())
    assert "xy" not in load_tokenizer(out / "tokenizer.json").get_vocab()


def test_metrics_are_those_of_the_training_text(tmp_path):
    out = train(tmp_path)
    tokenizer = load_tokenizer(out / "tokenizer.json")
    texts = [document.text for document in documents() if document.split == "train"]
    ids = [number for text in texts for number in tokenizer.encode(text).ids]
    assert metrics(out) == {
        "vocab_size": 480,
        "bytes_per_token": pytest.approx(sum(len(text.encode()) for text in texts) / len(ids)),
        "unused_tokens": len(set(range(4, 480)) - set(ids)),
    }


def test_a_run_of_hundreds_of_thousands_of_letters_does_not_stop_the_trainer(tmp_path):
    texts = ["a" * 200_000, " " * 200_000 + "x", "=" * 200_000, "".join(random.Random(0).choices("acgt", k=200_000))]
    out = train(tmp_path, PARAMS, [Document(f"d{n}", text) for n, text in enumerate(texts)])
    tokenizer = load_tokenizer(out / "tokenizer.json")
    assert all(decoded(tokenizer, text) == text for text in texts)


# The same as Hugging Face's trainer


def merges_of_huggingface(words: dict[str, int], vocab_size: int, min_frequency: int) -> tuple[list, dict]:
    """Words are written in the characters that stand for bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=["<a>", "<b>"],
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("|".join([word] * count) for word, count in words.items()), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [tuple(merge) for merge in model["merges"]], model["vocab"]


def merges_of_ours(words: dict[str, int], vocab_size: int, min_frequency: int) -> tuple[list, dict]:
    characters = byte_characters()
    data = [bytes(map(characters.index, word)) for word in words]
    offsets = np.cumsum([0, *map(len, data)])
    counts = np.array(list(words.values()), np.int64)
    learned = learn(np.frombuffer(b"".join(data), np.uint8), offsets, counts, 2, vocab_size, min_frequency)
    tokens = ["<a>", "<b>", *("".join(characters[byte] for byte in token) for token in learned.tokens)]
    return [(tokens[a], tokens[b]) for a, b in learned.pairs], {token: n for n, token in enumerate(tokens)}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["a", "ab", "abc", "ab=-"]).flatmap(
        lambda letters: st.dictionaries(st.text(letters, min_size=1, max_size=30), st.integers(1, 40), min_size=1)
    ),
    st.sampled_from([259, 262, 280, 400, 2000]),
    st.sampled_from([1, 2, 5]),
)
def test_few_letters_give_the_merges_of_huggingface(words, vocab_size, min_frequency):
    """Few letters make ties, overlaps, and tokens that two different merges make."""
    expected = merges_of_huggingface(words, vocab_size, min_frequency)
    assert merges_of_ours(words, vocab_size, min_frequency) == expected


def test_arrays_that_are_short_grow(monkeypatch):
    """All the sizes that the merge loop starts with, as small as they go."""
    words = {"".join(random.Random(n).choices("abcdefgh", k=12)): n % 7 + 1 for n in range(300)}
    expected = merges_of_huggingface(words, 1500, 1)
    monkeypatch.setattr("stages.tokenizer.learn.FIRST_PAIRS", 64)
    monkeypatch.setattr("stages.tokenizer.learn.FIRST_BYTES", 256)
    monkeypatch.setattr("stages.tokenizer.learn.FIRST_PLACES", 0)
    assert merges_of_ours(words, 1500, 1) == expected


def test_counts_beyond_32_bits_are_right():
    assert merges_of_ours({"ab": 1 << 40, "cd": 3}, 259, 2)[0] == [("a", "b")]


@pytest.mark.parametrize("extra", [[], EXTRA])
def test_the_file_is_that_of_huggingface(tmp_path, extra):
    params = TokenizerParams(vocab_size=500, extra_special_tokens=extra)
    ours = (train(tmp_path / "ours", params) / "tokenizer.json").read_bytes()
    theirs = train(tmp_path / "theirs", params.model_copy(update={"engine": "hf"})) / "tokenizer.json"
    assert ours == theirs.read_bytes()


def test_words_are_counted_whatever_the_shards_and_the_size_of_the_table(tmp_path, monkeypatch):
    expected = Counter(
        piece for document in documents() if document.split == "train" for piece in pieces(document.text)
    )
    for n_shards, n_slots in ((1, 1 << 20), (5, 64)):
        monkeypatch.setattr("stages.tokenizer.count.N_SLOTS", n_slots)
        root = tmp_path / str(n_shards)
        write_corpus(root, documents(), n_shards=n_shards)
        job = Job("tokenizer", root, ONE_WORKER)
        shards = kept_parts(root / "data/clean/documents", root / "data/dedup/keep.parquet")
        data, offsets, counts = count_words(job, shards, Rule(GPT4, 3))
        words = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]
        assert dict(zip(words, counts.tolist(), strict=True)) == expected
        texts = pa.array([document.text for document in documents() if document.split == "train"])
        assert sorted(count_texts(texts, Rule(GPT4, 3)).counts) == sorted(counts)
