"""tokenizer: nothing is lost, nothing in a text is special, and equal text gives equal bytes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from stages.entry import Job
from stages.errors import BadInput
from stages.pretoken_rules import GPT4, Rule, pre_tokenizer
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run
from stages.vocabulary import SPECIAL_TOKENS, load_tokenizer
from tests.stages.corpus import ONE_WORKER, Document, prose, run_stage, write_corpus

REPOSITORY = Path(__file__).parents[2]
PARAMS = TokenizerParams(vocab_size=480)
EXTRA = ["[MASK]", "<extra_id_0>", "<|tool|>"]
TORTURE = [
    "",
    " ",
    "\n\n\n \t\r\n \r",
    "\x00\x01\x7f\x80\x85\xa0\xad",
    "a\u0301 e\u0301\u0323 \u0345",  # combining marks
    "ﬁ ſ K İ ı ß ẞ",
    "العربية ١٢٣٤ עברית हिन्दी ไทย",
    "漢字かな交じり文。한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 \U0001f9ff",
    "\ufeff\u200b\u200d\u2028\u2029\u202e\ufffd\uffff\U0010ffff",
    "1234567890 ½ Ⅻ ² 1,234.5e-6",
    "don't DON'T we'LL 'ſ ''' '",
    "def f(x):\n\treturn x  # 'quoted'\n\n\n    pass",
    "Ġ Ċ ĉ Ā â€œ",  # what the bytes themselves are written as
    "=" * 300 + "-" * 70 + "a" * 500 + " " * 90,
]


def documents(n: int = 60, n_words: int = 80) -> list[Document]:
    splits = ["test", "validation", *["train"] * 8]
    return [Document(f"d{seed}", prose(seed, n_words), splits[seed % 10]) for seed in range(n)]


def train(root: Path, params: TokenizerParams = PARAMS, corpus: list[Document] | None = None, **options) -> Path:
    write_corpus(root, documents() if corpus is None else corpus, **options)
    return run_stage(run, root, tokenizer=params)


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("workspace"), PARAMS.model_copy(update={"extra_special_tokens": EXTRA}))


@pytest.fixture(scope="module")
def tokenizer(out) -> Tokenizer:
    return load_tokenizer(out / "tokenizer.json")


def decoded(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)


# Nothing is lost


@pytest.mark.parametrize("text", TORTURE, ids=ascii)
def test_torture_texts_come_back(tokenizer, text):
    assert decoded(tokenizer, text) == text


def test_any_text_and_any_bytes_come_back(tokenizer):
    @settings(max_examples=300, deadline=None)
    @given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
    def check(text):
        assert decoded(tokenizer, text) == text

    check()


def test_every_byte_has_an_id_below_the_merges(tokenizer):
    n_special = len(SPECIAL_TOKENS) + len(EXTRA)
    alphabet = [tokenizer.id_to_token(number) for number in range(n_special, n_special + 256)]
    assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert min(tokenizer.encode("".join(map(chr, range(0xD800)))).ids) >= n_special


# Nothing in a text is special


def test_special_tokens_have_the_first_ids_in_the_order_of_the_params(tokenizer):
    assert [tokenizer.token_to_id(token) for token in [*SPECIAL_TOKENS, *EXTRA]] == list(range(7))


@pytest.mark.parametrize("special", [*SPECIAL_TOKENS, *EXTRA])
def test_special_strings_in_text_are_text(tokenizer, special):
    for text in (special, f"a{special}b", special * 3, f" {special}\n"):
        encoding = tokenizer.encode(text)
        assert min(encoding.ids) >= 7 and len(encoding.ids) > 1
        assert tokenizer.decode(encoding.ids) == text


def test_text_full_of_special_strings_does_not_teach_them(tmp_path):
    corpus = [Document(f"d{n}", f"{' '.join(SPECIAL_TOKENS)} {' '.join(EXTRA)} " * 50) for n in range(4)]
    tokenizer = load_tokenizer(train(tmp_path, TokenizerParams(extra_special_tokens=EXTRA), corpus) / "tokenizer.json")
    for special in [*SPECIAL_TOKENS, *EXTRA]:
        assert min(tokenizer.encode(special).ids) >= 7


@pytest.mark.parametrize("token", ["", "the", "###", " ", "é", "Ġthe", "<", "[]", "<|>", "a]"])
def test_a_special_token_that_text_could_teach_is_refused(token):
    with pytest.raises(ValueError, match="could also be learned from text"):
        TokenizerParams(extra_special_tokens=[token])


def test_other_impossible_params_are_refused():
    with pytest.raises(ValueError, match="names a token twice"):
        TokenizerParams(extra_special_tokens=["<a>", "<a>"])
    with pytest.raises(ValueError, match=r"repeats <\|pad\|>, which every tokenizer has"):
        TokenizerParams(extra_special_tokens=["<|pad|>"])
    with pytest.raises(ValueError, match="vocab_size 260 is below 261: every byte and special token has an id"):
        TokenizerParams(vocab_size=260, extra_special_tokens=["<a>"])


# What is learned


def test_text_is_split_as_the_stage_says():
    def pieces(text: str, max_digits: int = 3) -> list[str]:
        return [text[start:end] for _, (start, end) in pre_tokenizer(Rule(GPT4, max_digits)).pre_tokenize_str(text)]

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


# Equal text gives equal bytes


def test_only_kept_training_documents_count_and_their_order_and_shards_do_not(tmp_path):
    corpus = documents()
    expected = (train(tmp_path / "a", corpus=corpus) / "tokenizer.json").read_bytes()
    training = [document for document in corpus if document.split == "train"]
    others = [Document("t", "zqzq " * 900, "test"), Document("v", "zqzq " * 900, "validation")]
    removed = Document("r", "zqzq " * 900)
    random.Random(1).shuffle(training)
    out = train(tmp_path / "b", corpus=[*others, removed, *training], removed=["r"], n_shards=5)
    assert (out / "tokenizer.json").read_bytes() == expected


def test_bytes_do_not_depend_on_hash_seed_or_threads(tmp_path):
    expected = {path.name: path.read_bytes() for path in train(tmp_path).iterdir()}
    program = (
        "from pathlib import Path; from tests.stages.corpus import run_stage; "
        "from stages.tokenizer.stage import TokenizerParams, run; "
        "run_stage(run, Path('.'), tokenizer=TokenizerParams(vocab_size=480))"
    )
    for seed, threads, parallel in (("1", "1", "false"), ("2", "3", "true")):
        settings = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        environment = {**os.environ, **settings, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "data/tokenizer").iterdir()} == expected


# What cannot be used


def test_without_training_text_the_stage_says_so(tmp_path):
    write_corpus(tmp_path, [Document("t", "text", "test")])
    job = Job("tokenizer", tmp_path, ONE_WORKER)
    job.prepare()
    with pytest.raises(BadInput, match=r"keep.parquet keeps no training document; loosen clean or dedup"):
        run(job, PARAMS)


def test_an_unusable_tokenizer_file_is_named(tmp_path, out):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BadInput, match=r"tokenizer.json: not a tokenizer.json .*; run `dvc repro tokenizer`"):
        load_tokenizer(path)
    path.write_text((out / "tokenizer.json").read_text()[:1000])
    with pytest.raises(BadInput, match=r"tokenizer.json: not a tokenizer.json"):
        load_tokenizer(path)
    path.write_text((out / "tokenizer.json").read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(BadInput, match=r"has no token <\|endoftext\|>, which separates documents"):
        load_tokenizer(path)
    described = json.loads((out / "tokenizer.json").read_text())
    described["model"]["vocab"]["Ġzzzz"] = 70_000
    path.write_text(json.dumps(described))
    with pytest.raises(BadInput, match="id 70000 in a vocabulary of 481; ids must be 0, 1, 2.. without gaps"):
        load_tokenizer(path)
