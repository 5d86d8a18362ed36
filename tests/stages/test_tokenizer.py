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

from stages.encoding import Encoder
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run
from stages.vocabulary import SPECIAL_TOKENS, load_tokenizer
from tests.stages.corpus import ONE_WORKER, Document, run_stage, write_corpus
from tests.stages.tokenizer_corpus import EXTRA, PARAMS, TORTURE, decoded, documents, metrics, train

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("workspace"), PARAMS.model_copy(update={"extra_special_tokens": EXTRA}))


@pytest.fixture(scope="module")
def tokenizer(out) -> Tokenizer:
    return load_tokenizer(out / "tokenizer.json")


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


# Equal text gives equal bytes


def test_a_vocabulary_that_the_text_does_not_fill_is_warned_of(tmp_path, capsys):
    out = train(tmp_path, TokenizerParams(vocab_size=20_000))
    size = metrics(out)["vocab_size"]
    assert size < 20_000
    assert (
        f"tokenizer: warning: {size:,} tokens where tokenizer.vocab_size asks for 20,000: the text has no more pairs "
        "that occur 2 times"
    ) in capsys.readouterr().out
    train(tmp_path, TokenizerParams(vocab_size=300))
    assert "warning" not in capsys.readouterr().out
    train(tmp_path, TokenizerParams(vocab_size=20_000, type="character"))
    assert "no more characters that occur" in capsys.readouterr().out


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
