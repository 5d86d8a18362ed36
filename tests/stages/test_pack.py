"""pack: no token lost, none made up, no document cut needlessly, and no reserved text in training."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import kept
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.pack import encode, gather, leaks, shards
from stages.pack.params import PackParams
from stages.pack.shards import RowFormat, TokenDocuments, lay_out, write_rows
from stages.pack.stage import run
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run as run_tokenizer
from stages.tokens import IGNORED_LABEL, TokenRows
from stages.vocabulary import SPECIAL_TOKENS, load_tokenizer
from stages.wording import counted
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


def write_tokens(
    folder: Path, tokens: list[list[int]], strategy: str, context_length: int, vocab_size: int = 400
) -> TokenRows:
    """The rows of documents given as tokens."""
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    lengths = np.array([len(own) + 1 for own in tokens], np.int64)
    np.array([token for own in tokens for token in [END, *own]], dtype).tofile(folder / "flat")
    stand = TokenDocuments([folder / "flat"], np.cumsum(lengths) - lengths, lengths, "")
    layout = lay_out(folder / "plan", stand, RowFormat(strategy, context_length, vocab_size, str(dtype), END, PAD))
    write_rows(Job("pack", folder, ONE_WORKER), folder / "rows", layout, 1 << 20, tokenizer_sha256="")
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
    rows = write_tokens(tmp_path, [[5, vocab_size - 1, 7], [vocab_size - 1] * 20], "best_fit", 8, vocab_size)
    assert rows.index["dtype"] == dtype
    with pa.ipc.open_file(str(tmp_path / "rows/00000.arrow")) as file:
        assert str(file.schema.field("input_ids").type.value_type) == dtype
    assert [own.tolist() for own in rows.documents()] == [[5, vocab_size - 1, 7, END], [*[vocab_size - 1] * 20, END]]


def test_concat_lays_documents_end_to_end(tmp_path):
    generator = random.Random(0)
    tokens = [[generator.randint(2, 399) for _ in range(generator.randint(0, 50))] for _ in range(100)]
    rows = write_tokens(tmp_path, tokens, "concat", 16)
    batch = rows.batch(np.arange(rows.n_rows))
    laid = [token for own in tokens for token in [END, *own]]
    assert batch.inputs.ravel()[: len(laid)].tolist() == laid
    assert rows.n_rows == -(-len(laid) // 16) and rows.index["padding"] == rows.n_rows * 16 - len(laid)


# Equal inputs give equal bytes


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_bytes_depend_on_neither_workers_nor_batches_nor_buffers(tmp_path, root, monkeypatch):
    expected = contents(packed(root))
    for name in ("data/clean", "data/dedup", "data/tokenizer"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.setattr(encode, "BATCH_BYTES", 2000)
    monkeypatch.setattr(kept, "BATCH_ROWS", 7)
    monkeypatch.setattr(gather, "BUFFER_SLOTS", 100)
    monkeypatch.setattr(gather, "NEAR_SLOTS", 3)
    assert contents(packed(tmp_path, execution=Execution(workers=2))) == expected


def made(root: Path, step: str) -> set[str]:
    return {path.name for path in (root / ".dvc/tmp/millrace/pack/tasks" / step).iterdir()}


def test_a_shard_that_changes_is_encoded_again_and_the_others_are_not(tmp_path):
    corpus = documents()
    write_corpus(tmp_path, corpus, n_shards=4)
    run_stage(run_tokenizer, tmp_path, tokenizer=TokenizerParams(vocab_size=300))
    packed(tmp_path)
    before, indices, leaks_before = (made(tmp_path, step) for step in ("encoded", "index", "leaks"))
    write_corpus(tmp_path, [corpus[0]._replace(text="another text"), *corpus[1:]], n_shards=4)
    packed(tmp_path)
    assert len(before) == 4 and len(made(tmp_path, "encoded") - before) == 1
    assert corpus[0].split == "train" and made(tmp_path, "index") == indices, "the reserved text is the same"
    assert len(leaks_before) == 4 and len(made(tmp_path, "leaks") - leaks_before) == 1
    write_corpus(tmp_path, corpus, removed=["d153"], n_shards=4)
    expected = contents(packed(tmp_path))
    assert len(made(tmp_path, "encoded") - before) == 2, "one more: other rows of the last shard are kept"
    shutil.rmtree(tmp_path / ".dvc")
    assert contents(packed(tmp_path)) == expected, "what was kept in scratch is what is made afresh"


def test_what_was_finished_before_a_kill_is_not_done_again(tmp_path, root, monkeypatch):
    for name in ("data/clean", "data/dedup", "data/tokenizer"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(root / name)
    uninterrupted = contents(packed(root))
    real, calls = shards.write_shard, []

    def killed_at_the_third(span, folder, layout):
        calls.append(span)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(span, folder, layout)

    monkeypatch.setattr(shards, "write_shard", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path)
    assert not (tmp_path / "data/pack").exists()
    assert contents(out := packed(tmp_path)) == uninterrupted
    assert len(calls) == 3 + len(list(out.rglob("*.arrow"))) - 2, "two were there already"


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
    monkeypatch.setattr(encode, "BATCH_BYTES", 4000)
    for workers, group_shingles in ((1, 1 << 22), (2, 500), (1, 1)):
        monkeypatch.setattr(leaks, "GROUP_SHINGLES", group_shingles)
        monkeypatch.setattr(leaks, "HELD_SHINGLES", 1000)
        job = Job("pack", tmp_path, Execution(workers=workers, scratch=str(tmp_path / f"scratch{group_shingles}")))
        found = leaks.find_leaks(job, packed_parts(tmp_path))
        assert {leak.training_id: leak.jaccard for leak in found} == expected
        assert all(leak.training_id[1:] == leak.reserved_id[1:] for leak in found)
        steps = job.store / "leaks", job.store / "index"
        n_results, n_groups = (len(list(step.iterdir())) for step in steps)
        assert n_results == 3, "one for each shard, however many groups there are"
        assert (n_groups == 1) == (group_shingles > 500)


def test_pack_counts_leaks_and_names_the_first(tmp_path, capsys):
    corpus = near_copies()
    write_corpus(tmp_path, corpus)
    run_stage(run_tokenizer, tmp_path, tokenizer=TokenizerParams(vocab_size=300))
    count = json.loads((packed(tmp_path) / "metrics.json").read_text())["near_duplicates_across_splits"]
    assert (
        f"pack: warning: {counted(count, 'near-repeat')} of reserved documents in train (Jaccard"
        in capsys.readouterr().out
    )
    found = leaks.find_leaks(Job("pack", tmp_path, ONE_WORKER), packed_parts(tmp_path))
    assert len(found) == count
    write_corpus(tmp_path, corpus, removed=[leak.training_id for leak in found])
    assert json.loads((packed(tmp_path) / "metrics.json").read_text())["near_duplicates_across_splits"] == 0
    assert "near-repeat" not in capsys.readouterr().out


def test_reserved_text_of_few_tokens_is_warned_of(tmp_path, capsys):
    long = [
        Document(f"{split}{number}", prose(number, 4000), split) for number in range(4) for split in ("train", "test")
    ]
    write_corpus(tmp_path, [*long, Document("short", prose(9, 100), "validation")])
    run_stage(run_tokenizer, tmp_path, tokenizer=TokenizerParams(vocab_size=300))
    n_tokens = json.loads((packed(tmp_path) / "metrics.json").read_text())["tokens_validation"]
    said = capsys.readouterr().out
    assert f"pack: warning: {n_tokens} tokens in " in said and "are reserved for validation, on which a loss is" in said
    assert "for test" not in said and "for train" not in said


# What cannot be used


def packed_parts(root: Path) -> list[kept.Part]:
    return kept.kept_parts(root / "data/clean/documents", root / "data/dedup/keep.parquet")


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
        packed_parts(tmp_path)


def test_a_keep_list_of_another_corpus_is_refused(tmp_path):
    write_corpus(tmp_path, documents())
    keep = tmp_path / "data/dedup/keep.parquet"
    pq.write_table(pa.table({"id": ["d1", "d2", "elsewhere"]}), keep)
    with pytest.raises(
        BadInput, match=r"keep.parquet: lists 3 documents, of which 2 stand in .*; run `dvc repro dedup`"
    ):
        packed_parts(tmp_path)


@pytest.mark.parametrize("value", [0, 7, (1 << 20) + 1, 12.5])
def test_an_impossible_context_length_is_refused(value):
    with pytest.raises(ValueError, match="context_length"):
        PackParams(context_length=value)
