"""tokenizer: nothing is lost, nothing in a text is special, and equal text gives equal bytes."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.cli import cli
from stages.encoding import Encoder
from stages.entry import Job, file_sha256
from stages.errors import BadInput
from stages.evaluate.token_bytes import TokenBytes
from stages.execution import Execution
from stages.kept import kept_parts
from stages.pretoken_rules import GPT4, Rule, pre_tokenizer
from stages.tokenizer.count import count_texts, count_words
from stages.tokenizer.learn import learn
from stages.tokenizer.migrate import migrate
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.sample import read_sample
from stages.tokenizer.stage import run
from stages.vocabulary import SPECIAL_TOKENS, byte_characters, load_tokenizer, roles_of
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


def pieces(text: str, max_digits: int = 3) -> list[str]:
    return [text[a:b] for _, (a, b) in pre_tokenizer(Rule(GPT4, max_digits)).pre_tokenize_str(text)]


# Characters


def test_a_character_is_a_token_if_it_is_frequent(tmp_path):
    params = TokenizerParams(type="character", vocab_size=263, min_frequency=2)
    corpus = [Document("d", "日本日本本 été été 中 日日"), Document("e", "ab")]
    tokenizer = load_tokenizer(train(tmp_path, params, corpus) / "tokenizer.json")
    assert [tokenizer.decode([number]) for number in range(260, 263)] == ["é", "日", "本"]
    assert len(tokenizer.encode("日é本").ids) == 3
    assert len(tokenizer.encode("中").ids) == 3, "its bytes"
    for text in TORTURE:
        assert decoded(tokenizer, text) == text
        assert Encoder(tokenizer)([text])[0].tolist() == tokenizer.encode(text).ids


# A file of somebody else's


def foreign(path: Path, names: list[str], **changes) -> Path:
    """GPT-2's kind of file, with special tokens of these names behind the merges."""
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(byte_characters()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    path.write_text(json.dumps({**json.loads(tokenizer.to_str()), **changes}))
    return path


def taking(path: Path, **params) -> TokenizerParams:
    return TokenizerParams(file=str(path), file_sha256=file_sha256(path), **params)


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


def test_two_workers_give_the_same_bytes(tmp_path):
    for workers in (1, 2):
        root = tmp_path / str(workers)
        write_corpus(root, documents(), n_shards=4)
        run_stage(run, root, Execution(workers=workers), tokenizer=PARAMS)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "data/tokenizer").iterdir()} for n in "12")
    assert one == two


def test_only_a_shard_that_changed_is_counted_again(tmp_path):
    train(tmp_path, n_shards=4)
    changed = [*documents()[:-1], Document("another", "of other words")]
    write_corpus(tmp_path, changed, n_shards=4)
    run_stage(run, tmp_path, tokenizer=PARAMS)
    assert len(list((tmp_path / ".dvc/tmp/millrace/tokenizer/tasks/words").iterdir())) == 5


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
