"""pack: no token lost, none made up, no document cut needlessly, and no reserved text in training."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.pack import encode, leaks
from stages.pack.encode import EncodedSplit
from stages.pack.params import PackParams
from stages.pack.plan import best_fit, plan_best_fit, plan_concat
from stages.pack.shards import write_rows
from stages.pack.stage import run
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run as run_tokenizer
from stages.tokens import IGNORED_LABEL, TokenRows
from stages.vocabulary import SPECIAL_TOKENS, load_tokenizer
from tests.stages.corpus import ONE_WORKER, Document, prose, run_stage, write_corpus
from tests.stages.normalised import normalised_words

END, PAD = 0, 1
PARAMS = PackParams(context_length=32, shard_tokens=1 << 10)
SPLITS = ("train", "validation", "test")


def documents() -> list[Document]:
    """From nothing to many rows, with special strings in the text."""
    texts = [prose(seed, seed % 40) for seed in range(150)] + [prose(seed, 400) for seed in range(3)]
    texts += ["", "x", " ".join(SPECIAL_TOKENS) * 3]
    splits = ["train", "train", "validation", "train", "test"]
    return [Document(f"d{number}", text, splits[number % 5]) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A workspace with a tokenizer; two documents are not kept."""
    root = tmp_path_factory.mktemp("workspace")
    write_corpus(root, documents(), removed=["d0", "d151"])
    run_stage(run_tokenizer, root, tokenizer=TokenizerParams(vocab_size=400))
    return root


def packed(root: Path, params: PackParams = PARAMS, execution: Execution = ONE_WORKER) -> Path:
    return run_stage(run, root, execution, pack=params)


@pytest.fixture(scope="module")
def out(root) -> Path:
    return packed(root)


def stream(root: Path, split: str) -> list[list[int]]:
    """The tokens of each kept document, as the tokenizer alone gives them."""
    tokenizer = load_tokenizer(root / "data/tokenizer/tokenizer.json")
    kept = [document for document in documents() if document.id not in ("d0", "d151")]
    return [tokenizer.encode(document.text).ids for document in kept if document.split == split]


def pairs_of_stream(tokens: list[list[int]]) -> Counter:
    return Counter(pair for own in tokens for pair in zip([END, *own], [*own, END], strict=True))


def pairs_of_rows(rows: TokenRows) -> Counter:
    batch = rows.batch(np.arange(rows.n_rows))
    valid = batch.labels != IGNORED_LABEL
    return Counter(zip(batch.inputs[valid].tolist(), batch.labels[valid].tolist(), strict=True))


def write_tokens(folder: Path, tokens: list[list[int]], plan, context_length: int, vocab_size: int = 400) -> TokenRows:
    """The rows of documents given as tokens."""
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    lengths = np.array([len(own) + 1 for own in tokens], np.int64)
    np.array([token for own in tokens for token in [END, *own]], dtype).tofile(folder / "flat")
    write_rows(
        folder / "rows",
        EncodedSplit(folder / "flat", dtype, lengths, ""),
        plan(lengths, context_length),
        context_length=context_length,
        vocab_size=vocab_size,
        shard_tokens=1 << 20,
        end_of_text=END,
        padding=PAD,
        tokenizer_sha256="",
    )
    return TokenRows(folder / "rows")


# Tokens in = tokens out


@pytest.mark.parametrize("strategy", ["best_fit", "concat"])
@pytest.mark.parametrize("context_length", [8, 32, 4096])
@pytest.mark.parametrize("shard_tokens", [1024, 1 << 25])
def test_rows_hold_exactly_the_pairs_of_the_documents(root, strategy, context_length, shard_tokens):
    out = packed(root, PackParams(strategy=strategy, context_length=context_length, shard_tokens=shard_tokens))
    metrics = json.loads((out / "metrics.json").read_text())
    for split in SPLITS:
        rows, tokens = TokenRows(out / split), stream(root, split)
        assert pairs_of_rows(rows) == pairs_of_stream(tokens)
        assert metrics[f"tokens_{split}"] == sum(len(own) + 1 for own in tokens) == rows.index["tokens"]
        assert [document.tolist() for document in rows.documents()] == [[*own, END] for own in tokens]
        assert rows.index["padding"] == rows.n_rows * context_length - rows.index["tokens"]
        assert (len(rows.index["shards"]) > 1) == (rows.n_rows * context_length > max(shard_tokens, context_length))
    assert metrics["dropped_tokens"] == 0


def test_no_end_of_text_is_learned_at_a_cut(root, out):
    for split in SPLITS:
        batch = TokenRows(out / split).batch(np.arange(TokenRows(out / split).n_rows))
        n_documents = len(stream(root, split))
        assert (batch.labels == END).sum() == n_documents, "one end each"
        assert (batch.inputs[batch.segments >= 0] == END).sum() == n_documents, "one beginning each"


def test_special_strings_of_a_text_are_text(root, out):
    written = [document for document in TokenRows(out / "train").documents() if len(document) > 30]
    texts = [load_tokenizer(root / "data/tokenizer/tokenizer.json").decode(own[:-1].tolist()) for own in written]
    assert " ".join(SPECIAL_TOKENS) * 3 in texts
    assert all(own[:-1].min() >= len(SPECIAL_TOKENS) for own in written)


def test_padding_is_never_a_label_and_belongs_to_no_document(out):
    rows = TokenRows(out / "train")
    batch = rows.batch(np.arange(rows.n_rows))
    padding = batch.segments < 0
    assert padding.sum() == rows.index["padding"] > 0
    assert (batch.labels[padding] == IGNORED_LABEL).all() and (batch.inputs[padding] == PAD).all()
    assert (batch.labels[~padding] != IGNORED_LABEL).all()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_ids_take_two_bytes_where_the_vocabulary_fits(tmp_path, vocab_size, dtype):
    rows = write_tokens(tmp_path, [[5, vocab_size - 1, 7], [vocab_size - 1] * 20], plan_best_fit, 8, vocab_size)
    assert rows.index["dtype"] == dtype
    with pa.ipc.open_file(str(tmp_path / "rows/00000.arrow")) as file:
        assert str(file.schema.field("input_ids").type.value_type) == dtype
    assert [own.tolist() for own in rows.documents()] == [[5, vocab_size - 1, 7, END], [*[vocab_size - 1] * 20, END]]


# Which row a document goes to


def naive_best_fit(lengths: list[int], context_length: int) -> tuple[list[int], int]:
    """In the words of the definition: the fullest row in which the piece still fits."""
    space: list[int] = []
    rows = []
    for length in lengths:
        fitting = [row for row, left in enumerate(space) if left >= length]
        if not fitting:
            space.append(context_length)
            fitting = [len(space) - 1]
        row = min(fitting, key=lambda row: space[row])
        space[row] -= length
        rows.append(row)
    return rows, len(space)


def filled(lengths: list[int], rows: list[int], n_rows: int) -> list[int]:
    return sorted(np.bincount(rows, lengths, n_rows).astype(int).tolist())


@pytest.mark.parametrize("context_length", [8, 64, 257])
def test_best_fit_is_best_fit_decreasing(context_length):
    generator = random.Random(context_length)
    lengths = sorted((generator.randint(1, context_length) for _ in range(500)), reverse=True)
    ours, theirs = best_fit(lengths, context_length), naive_best_fit(lengths, context_length)
    assert ours[1] == theirs[1]
    assert filled(lengths, *ours) == filled(lengths, *theirs)


def test_best_fit_cuts_no_document_that_fits_and_pads_little():
    lengths = np.random.default_rng(0).geometric(1 / 300, 5000)
    plan = plan_best_fit(lengths, 256)
    pieces = np.bincount(plan.documents)
    assert (pieces == -(-lengths // 256)).all(), "one piece for what fits, full rows and a rest for what does not"
    assert plan.needless_cuts == 0
    assert np.bincount(plan.rows, plan.lengths).max() <= 256
    assert 1 - lengths.sum() / (plan.n_rows * 256) < 0.005


def test_the_examples_of_the_module():
    plan = plan_best_fit(np.array([5, 4, 3]), 8)
    assert plan.n_rows == 2 and plan.rows.tolist() == [0, 0, 1] and plan.documents.tolist() == [0, 2, 1]
    plan = plan_concat(np.array([5, 4, 3]), 8)
    assert plan.rows.tolist() == [0, 0, 1, 1] and plan.lengths.tolist() == [5, 3, 1, 3]
    assert plan.offsets.tolist() == [0, 0, 3, 0] and plan.needless_cuts == 1


def test_concat_lays_documents_end_to_end(tmp_path):
    generator = random.Random(0)
    tokens = [[generator.randint(2, 399) for _ in range(generator.randint(0, 50))] for _ in range(100)]
    rows = write_tokens(tmp_path, tokens, plan_concat, 16)
    batch = rows.batch(np.arange(rows.n_rows))
    laid = [token for own in tokens for token in [END, *own]]
    assert batch.inputs.ravel()[: len(laid)].tolist() == laid
    assert rows.n_rows == -(-len(laid) // 16) and rows.index["padding"] == rows.n_rows * 16 - len(laid)


@pytest.mark.parametrize("plan", [plan_best_fit, plan_concat])
@pytest.mark.parametrize("lengths", [[1], [8], [9], [16], [17], [1] * 17, [8, 8], [3, 100, 1, 8, 7, 1]])
def test_plans_fill_each_slot_once_at_every_edge(plan, lengths):
    made = plan(np.array(lengths), 8)
    slots = sorted(
        (document, offset + slot)
        for document, offset, length in zip(made.documents, made.offsets, made.lengths, strict=True)
        for slot in range(length)
    )
    assert slots == [(document, slot) for document, length in enumerate(lengths) for slot in range(length)]
    assert sorted(set(made.rows.tolist())) == list(range(made.n_rows))
    assert np.bincount(made.rows, made.lengths).max() <= 8


# Equal inputs give equal bytes


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_bytes_do_not_depend_on_workers(root, monkeypatch):
    expected = contents(packed(root))
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 2000)
    monkeypatch.setattr(leaks, "BATCH_BYTES", 3000)
    assert contents(packed(root, execution=Execution(workers=2))) == expected
    assert contents(packed(root)) == expected


def test_the_test_text_has_the_same_hash_under_any_params(root, tmp_path):
    def hash_of(out: Path) -> str:
        return json.loads((out / "metrics.json").read_text())["eval_sha256"]

    expected = hash_of(packed(root, PackParams(strategy="concat", context_length=8)))
    write_corpus(tmp_path, documents(), removed=["d0", "d1", "d151"])  # d1 is training text
    run_stage(run_tokenizer, tmp_path, tokenizer=TokenizerParams(vocab_size=300))
    assert hash_of(packed(tmp_path)) == expected
    write_corpus(tmp_path, documents(), removed=["d0", "d4", "d151"])  # d4 is test text
    assert hash_of(packed(tmp_path)) != expected


# Reserved text in training


def jaccard(first: str, second: str) -> float:
    sets = []
    for text in (first, second):
        words = normalised_words(text)
        sets.append({tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def near_copies() -> list[Document]:
    """Reserved documents of several lengths, and training documents more or less like them."""
    generator = random.Random(0)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "el", "ir", "os", "ut", "ea")]
    found = []
    for seed in range(40):
        original = generator.choices(words, k=10 + seed * 5)
        copy = [word if generator.random() > seed % 10 / 200 else "other" for word in original]
        longer = copy + generator.choices(words, k=seed % 7 * len(copy) // 30)
        split = ("validation", "test")[seed % 2]
        found += [Document(f"r{seed}", " ".join(original), split), Document(f"t{seed}", " ".join(longer).upper())]
    return [*found, Document("r40", "two words", "test"), Document("t40", "Two: words!"), Document("t41", "???")]


def test_leaks_are_those_of_brute_force(tmp_path, monkeypatch):
    corpus = near_copies()
    reserved = [document for document in corpus if document.split != "train"]
    expected = {}
    for document in corpus:
        similarities = [jaccard(document.text, other.text) for other in reserved]
        if document.split == "train" and max(similarities) >= 0.75:
            expected[document.id] = pytest.approx(max(similarities))
    assert 15 < len(expected) < 35, "some on either side of the threshold"
    write_corpus(tmp_path, corpus, n_shards=3)
    monkeypatch.setattr(leaks, "BATCH_BYTES", 4000)
    for workers in (1, 2):
        found = leaks.find_leaks(tmp_path, tmp_path / f"index{workers}", workers)
        assert {leak.training_id: leak.jaccard for leak in found} == expected
        assert all(leak.training_id[1:] == leak.reserved_id[1:] for leak in found)


def test_pack_counts_leaks_and_names_the_first(tmp_path, capsys):
    corpus = near_copies()
    write_corpus(tmp_path, corpus)
    run_stage(run_tokenizer, tmp_path, tokenizer=TokenizerParams(vocab_size=300))
    count = json.loads((packed(tmp_path) / "metrics.json").read_text())["near_duplicates_across_splits"]
    assert f"pack: warning: {count} training documents nearly repeat a reserved one" in capsys.readouterr().out
    found = leaks.find_leaks(tmp_path, tmp_path / "index", 1)
    assert len(found) == count
    write_corpus(tmp_path, corpus, removed=[leak.training_id for leak in found])
    assert json.loads((packed(tmp_path) / "metrics.json").read_text())["near_duplicates_across_splits"] == 0
    assert "warning" not in capsys.readouterr().out


# What cannot be used


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused(tmp_path, root, split):
    write_corpus(tmp_path, [document for document in documents() if document.split != split])
    (tmp_path / "data/tokenizer").symlink_to(root / "data/tokenizer")
    job = Job("pack", tmp_path, ONE_WORKER)
    job.prepare()
    with pytest.raises(BadInput, match=f"the {split} split has no document; (loosen clean|raise split.{split})"):
        run(job, PARAMS)


def test_an_unreadable_keep_list_is_named(tmp_path):
    write_corpus(tmp_path, documents())
    (tmp_path / "data/dedup/keep.parquet").write_bytes(b"not Parquet")
    with pytest.raises(BadInput, match=r"keep.parquet: cannot be read as Parquet .*; remove it and run `dvc repro`"):
        list(encode.documents(tmp_path))


@pytest.mark.parametrize("value", [0, 7, (1 << 20) + 1, 12.5])
def test_an_impossible_context_length_is_refused(value):
    with pytest.raises(ValueError, match="context_length"):
        PackParams(context_length=value)
