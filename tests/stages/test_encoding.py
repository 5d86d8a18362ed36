"""encoding: the compiled kernels cut and merge as Hugging Face tokenizers do, for every character and any tokenizer."""

import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stages.byte_keys import any_key_of, key_of, words_of
from stages.byte_pairs import HEAP_FROM, merge_bytes, pair_table
from stages.compiled import kernel
from stages.encoding import Encoder
from stages.encoding_kernel import LONGEST_KEPT, N_ENTRIES
from stages.pretoken_rules import CHARACTERS, GPT2, GPT4, Rule, pre_tokenizer, rule_of
from stages.pretokens import pretoken_end
from stages.unicode import tables
from stages.utf8 import text_buffers
from tests.stages.corpus import prose

# One or two of every kind that the split patterns tell apart, of ASCII and beyond.
KINDS = ["a", "s", "1", " ", "\t", "\n", "\r", ".", "'", "é", "ſ", "中", "١", "\u0301", "\xa0", "\x85", "\x1c", "\x00"]
ASSIGNED = [chr(point) for point in range(0x32400) if not 0xD800 <= point < 0xE000]
RULES = [Rule(GPT4, 3), Rule(GPT4, 1), Rule(GPT2, 0), Rule(CHARACTERS, 0)]
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")


@kernel
def ends_of(data, classes, style, max_digits):
    """Where each pre-token ends."""
    ends, place = [0], 0
    while place < len(data):
        place = pretoken_end(data, place, len(data), classes, style, max_digits)
        ends.append(place)
    return ends


def cut(text: str, rule: Rule) -> list[str]:
    data = text.encode()
    ends = ends_of(np.frombuffer(data, np.uint8), tables()[0], *rule)
    return [data[a:b].decode() for a, b in itertools.pairwise(ends)]


def cut_by_huggingface(text: str, rule: Rule) -> list[str]:
    if rule.style == GPT2:
        splitter = pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated")
    else:
        splitter = pre_tokenizers.Sequence([pre_tokenizer(rule)])
    return [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)]


any_text = st.text(st.sampled_from(KINDS) | st.characters(codec="utf-8"), max_size=40)


# Where text is cut


def test_the_example_of_the_module():
    expected = ["don", "'t", " panic", ":", " ", "123", "45", "\n\n", " ", " x"]
    assert cut("don't panic: 12345\n\n  x", Rule(GPT4, 3)) == expected


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_all_short_texts_are_cut_as_by_huggingface(rule):
    for text in map("".join, itertools.product(KINDS, repeat=3)):
        assert cut(text, rule) == cut_by_huggingface(text, rule), ascii(text)


@pytest.mark.parametrize("kinds", ["a \n.'s", "a \n\r1", "a \n.é", " \n\xa0aé"])
def test_all_texts_of_five_of_these_kinds_are_cut_as_by_huggingface(kinds):
    for text in map("".join, itertools.product(kinds, repeat=5)):
        assert cut(text, Rule(GPT4, 3)) == cut_by_huggingface(text, Rule(GPT4, 3)), ascii(text)


@pytest.mark.parametrize("before", [" ", "'"])
def test_every_character_of_unicode_is_cut_as_by_huggingface(before):
    text = "".join(f"{before}{character}e|" for character in ASSIGNED)
    assert cut(text, Rule(GPT4, 3)) == cut_by_huggingface(text, Rule(GPT4, 3))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_any_text_is_cut_as_by_huggingface(rule):
    @settings(max_examples=200, deadline=None)
    @given(any_text)
    def check(text):
        assert cut(text, rule) == cut_by_huggingface(text, rule)

    check()


# How bytes are merged


def merge_plainly(data: bytes, ranks: dict[tuple[int, int], int]) -> list[int]:
    """Merge number n makes the token 256 + n."""
    ids = list(data)
    while True:
        best = (
            min((ranks[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in ranks)
            if any(pair in ranks for pair in itertools.pairwise(ids))
            else None
        )
        if best is None:
            return ids
        rank, at = best
        ids[at : at + 2] = [256 + rank]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 7, 30, HEAP_FROM - 1, HEAP_FROM, 3 * HEAP_FROM]))
def test_bytes_are_merged_by_rank_and_from_the_left(data, length):
    generator = random.Random(data.draw(st.integers(0, 1 << 30)))
    tokens, ranks = [97, 98, 99], {}
    for rank in range(generator.randrange(40)):
        pair = generator.choice(tokens), generator.choice(tokens)
        if pair not in ranks and rank == len(ranks):
            ranks[pair] = rank
            tokens.append(256 + rank)
    text = bytes(generator.choices(b"abc", k=length))
    left, right = (np.array([pair[side] for pair in ranks], np.uint32) for side in (0, 1))
    pairs = pair_table(left, right, np.arange(256, 256 + len(ranks), dtype=np.uint32))
    ids = np.zeros(length, np.uint32)
    n_ids = merge_bytes(np.frombuffer(text, np.uint8), 0, length, np.arange(256, dtype=np.uint32), pairs, ids)
    assert ids[:n_ids].tolist() == merge_plainly(text, ranks)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_keys_by_eight_bytes_are_those_by_single_bytes(data, draw):
    start = draw.draw(st.integers(0, len(data) - 1))
    end = draw.draw(st.integers(start + 1, len(data)))
    array = np.frombuffer(data, np.uint8)
    assert key_by_eight(array, words_of(array), start, end) == any_key_of(array, start, end)


@kernel
def key_by_eight(data, words, start, end):
    return key_of(data, words, start, end)


# What comes out


def trained(rule: Rule | None = None, vocab_size: int = 700, **of_model) -> Tokenizer:
    """A tokenizer whose merges know every kind of character."""
    tokenizer = Tokenizer(models.BPE(**of_model))
    tokenizer.pre_tokenizer = pre_tokenizer(rule or Rule(GPT4, 3))
    tokenizer.decoder = decoders.ByteLevel()
    texts = [prose(seed, 100) for seed in range(20)] + [f"{a}{b}" * 9 for a, b in itertools.product(KINDS, repeat=2)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained()


def assert_equal(tokenizer: Tokenizer, texts: list[str], encoder: Encoder | None = None) -> None:
    ids = (encoder or Encoder(tokenizer))(texts)
    for text, encoded, theirs in zip(
        texts, ids, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
    ):
        assert encoded.dtype == np.uint32
        assert encoded.tolist() == theirs.ids, ascii(text)


def test_any_text_has_the_ids_of_huggingface(tokenizer):
    encoder = Encoder(tokenizer)
    assert encoder.compiled

    @settings(max_examples=300, deadline=None)
    @given(st.lists(any_text, max_size=4))
    def check(texts):
        assert_equal(tokenizer, texts, encoder)

    check()


def test_buffers_of_arrow_are_encoded_as_they_are(tokenizer):
    texts = ["", "one text", "", "été 🙂", " and\n\nmore", ""]
    ids, id_offsets = Encoder(tokenizer).encode_buffers(*text_buffers(pa.array(["before", *texts])[1:]))
    assert (ids.dtype, id_offsets.dtype) == (np.uint32, np.int64)
    assert [part.tolist() for part in np.split(ids, id_offsets[1:-1])] == [tokenizer.encode(text).ids for text in texts]
    none, offsets = Encoder(tokenizer).encode_buffers(*text_buffers(pa.array([], pa.string())))
    assert (none.tolist(), offsets.tolist()) == ([], [0])


def test_a_full_table_is_forgotten(tokenizer):
    encoder = Encoder(tokenizer, n_slots=512)
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcdefgh é", k=2000)) for _ in range(40)]
    assert_equal(tokenizer, texts, encoder)
    assert 0 < encoder.table.used[N_ENTRIES] <= 256


@pytest.mark.parametrize("letters", ["a", "ab", "acgt", "aé中"])
def test_long_words_are_encoded_too(tokenizer, letters):
    lengths = [15, 16, 17, HEAP_FROM - 1, HEAP_FROM, LONGEST_KEPT, LONGEST_KEPT + 1, 20_000]
    texts = ["".join(random.Random(length).choices(letters, k=length)) for length in lengths]
    assert_equal(tokenizer, [f" {text} {text}" for text in texts])


def test_a_million_letters_without_a_space_take_no_minutes(tokenizer):
    text = "".join(random.Random(0).choices("acgt", k=1_000_000))
    ids = Encoder(tokenizer)([text])[0]
    assert tokenizer.decode(ids.tolist()) == text


def test_special_strings_in_text_are_text(tokenizer):
    assert_equal(tokenizer, ["<|endoftext|>", "a<|pad|>b", "<|endoftext|><|endoftext|>"])
    assert min(Encoder(tokenizer)(["<|endoftext|> <|pad|>"])[0]) >= 2


def test_a_text_that_is_no_unicode_is_refused_and_leaves_nothing_behind(tokenizer):
    encoder = Encoder(tokenizer)
    with pytest.raises(UnicodeEncodeError):
        encoder(["half a pair \ud800", "of surrogates"])
    assert_equal(tokenizer, ["half a pair", "of other words"], encoder)


# Which tokenizers the kernels encode for


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (LLAMA3_PATTERN, Rule(GPT4, 3)),
        (QWEN2_PATTERN, Rule(GPT4, 1)),
        (r"[\s\S]", Rule(CHARACTERS, 0)),
        (r"\p{L}+", None),
        (r"\p{N}|\p{L}+", None),
        (LLAMA3_PATTERN.replace("{1,3}", "{1,0}"), None),
        (LLAMA3_PATTERN.replace("'s|", ""), None),
    ],
)
def test_a_pattern_is_taken_only_if_it_is_known(pattern, rule):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = tokenizer_with(pre_tokenizers.Sequence([split, byte_level]))
    assert rule_of(json.loads(found.to_str())["pre_tokenizer"]) == rule


def tokenizer_with(splitter) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    return tokenizer


TEXTS = [prose(seed, 50) + "".join(random.Random(seed).choices(KINDS, k=50)) for seed in range(5)]


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, QWEN2_PATTERN])
def test_patterns_of_others_give_their_ids(tokenizer, pattern):
    other = Tokenizer.from_str(tokenizer.to_str())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    other.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    other.encode_special_tokens = True
    assert Encoder(other).compiled
    assert_equal(other, ["".join(text) for text in itertools.product(KINDS, repeat=2)] + TEXTS)


def test_gpt2_and_characters_give_their_ids():
    for rule in (Rule(GPT2, 0), Rule(CHARACTERS, 0)):
        other = trained(rule)
        assert Encoder(other).compiled
        assert_equal(other, ["".join(text) for text in itertools.product(KINDS, repeat=2)] + TEXTS)


def test_whole_words_of_the_vocabulary_need_no_merges(tokenizer):
    """As in Llama 3's file, `ignore_merges`."""
    described = json.loads(tokenizer.to_str())
    described["model"]["ignore_merges"] = True
    described["model"]["vocab"]["Ġgarnet"] = len(described["model"]["vocab"])
    other = Tokenizer.from_str(json.dumps(described))
    other.encode_special_tokens = True
    encoder = Encoder(other, n_slots=512)
    assert encoder.compiled
    assert encoder(["a garnet"])[0].tolist()[-1] == described["model"]["vocab"]["Ġgarnet"]
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcdefgh é", k=2000)) + " garnet" for _ in range(20)]
    assert_equal(other, texts, encoder)


def test_text_is_normalised_first_where_the_tokenizer_says_so(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.normalizer = normalizers.NFC()
    other.encode_special_tokens = True
    assert Encoder(other).compiled
    assert_equal(other, ["e\u0301te\u0301", "\u212b", "ascii", "", "한"])


def test_what_the_kernels_cannot_do_the_tokenizer_does_itself(tokenizer):
    described = json.loads(tokenizer.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model, tool = described["model"], {**described["added_tokens"][0], "id": 700, "content": "fig", "special": False}
    no_z = {**model, "vocab": {t: n for t, n in model["vocab"].items() if t != "z"}, "merges": []}
    for change in (
        {"pre_tokenizer": byte_level},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {**model, "end_of_word_suffix": "</w>"}},
        {"model": no_z},
        {"added_tokens": [*described["added_tokens"], tool]},
    ):
        other = Tokenizer.from_str(json.dumps({**described, **change}))
        other.encode_special_tokens = True
        assert Encoder(other).compiled is None, change
        assert_equal(other, [text.upper() for text in TEXTS] + ["fig figs"])
    drops = Tokenizer.from_str(json.dumps({**described, "model": {**model, "dropout": 1.0}}))
    drops.encode_special_tokens = True
    assert Encoder(drops).compiled is None


def test_no_special_token_is_added(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.post_processor = processors.TemplateProcessing("<|pad|> $A", special_tokens=[("<|pad|>", 1)])
    other.encode_special_tokens = True
    text = prose(0, 100)
    assert Encoder(other)([text])[0].tolist() == tokenizer.encode(text).ids
