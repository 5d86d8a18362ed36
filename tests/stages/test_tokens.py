"""tokens: rows read back as they were packed, broken shards are named, and the order is a pure function."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.context import count_documents
from stages.errors import BadInput
from stages.order import data_order
from stages.tokens import INDEX_VERSION, TokenRows, row_schema, token_dtype
from stages.train.batches import Batches
from tests.stages.conftest import CONTEXT, markov_documents, write_split

E, PAD, IGNORED = 0, 1, -100
a, b, c, d, e = 10, 11, 12, 13, 14


def write_rows(folder: Path, rows: list[dict], context_length: int = 8, vocab_size: int = 100) -> TokenRows:
    """Rows given column by column, one shard each."""
    folder.mkdir()
    schema, shards = row_schema(context_length, vocab_size), []
    for number, row in enumerate(rows):
        path = folder / f"{number}.arrow"
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_table(pa.Table.from_pylist([row], schema))
        shards.append({"file": path.name, "rows": 1, "bytes": path.stat().st_size})
    index = {"version": INDEX_VERSION, "context_length": context_length, "vocab_size": vocab_size, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return TokenRows(folder)


# Rows


def test_the_example_of_the_module(tmp_path):
    row = {"input_ids": [E, a, b, E, c, d, e, PAD], "lengths": [3, 4], "next_ids": [E, E]}
    rows = write_rows(tmp_path / "rows", [{**row, "documents": [0, 1], "offsets": [0, 0]}])
    batch = rows.batch(np.array([0]))
    assert batch.labels.tolist() == [[a, b, E, c, d, e, E, IGNORED]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 1, 1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert [document.tolist() for document in rows.documents()] == [[a, b, E], [c, d, e, E]]


def test_a_document_that_was_cut_comes_back_whole(tmp_path):
    """`a b c d` in two pieces, the second in an earlier row than the first, beside a whole document."""
    rest = {"input_ids": [c, d, E, e], "lengths": [2, 2], "next_ids": [E, E], "documents": [1, 0], "offsets": [3, 0]}
    first = {"input_ids": [E, a, b, PAD], "lengths": [3], "next_ids": [c], "documents": [1], "offsets": [0]}
    rows = write_rows(tmp_path / "rows", [rest, first], context_length=4)
    assert rows.batch(np.array([1, 0])).labels.tolist() == [[a, b, c, IGNORED], [d, E, e, E]]
    assert [document.tolist() for document in rows.documents()] == [[e, E], [a, b, c, d, E]]


def test_rows_come_in_any_order_from_any_shard_and_in_any_width(tmp_path):
    whole = {"input_ids": [E, a, b, c], "lengths": [4], "next_ids": [E], "documents": [0], "offsets": [0]}
    empty = {"input_ids": [PAD] * 4, "lengths": [], "next_ids": [], "documents": [], "offsets": []}
    short = {"input_ids": [E, d, E, PAD], "lengths": [2, 1], "next_ids": [E, e], "documents": [1, 2], "offsets": [0, 0]}
    rows = write_rows(tmp_path / "rows", [whole, empty, short], context_length=4)
    for dtype in (np.int32, np.int64):
        batch = rows.batch(np.array([2, 0, 1, 0]), dtype)
        assert batch.inputs.tolist() == [[E, d, E, PAD], [E, a, b, c], [PAD] * 4, [E, a, b, c]]
        assert batch.labels.tolist() == [[d, E, e, IGNORED], [a, b, c, E], [IGNORED] * 4, [a, b, c, E]]
        assert batch.segments.tolist() == [[0, 0, 1, -1], [0] * 4, [-1] * 4, [0] * 4]
        assert batch.positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3], [0] * 4, [0, 1, 2, 3]]
        assert {getattr(batch, name).dtype for name in ("inputs", "labels", "segments", "positions")} == {
            np.dtype(dtype)
        }
    assert rows.batch(np.array([], np.int64)).inputs.shape == (0, 4)


def test_rows_of_several_shards_are_numbered_through(tmp_path):
    documents = markov_documents(400, seed=3)
    write_split(tmp_path, "train", documents)
    rows = TokenRows(tmp_path / "data/pack/train")
    assert len(rows.index["shards"]) > 1 and rows.n_rows == rows.index["rows"]
    ids = np.random.default_rng(0).permutation(rows.n_rows)
    together = rows.batch(ids)
    for place, row_id in enumerate(ids[:50]):
        alone = rows.batch(np.array([row_id]))
        for field in ("inputs", "labels", "segments", "positions"):
            assert (getattr(alone, field)[0] == getattr(together, field)[place]).all()
    for own, theirs in zip(rows.documents(), documents, strict=True):
        assert own.tolist() == [*theirs.tolist(), E]


def test_the_table_of_segments_adds_up(tmp_path):
    write_split(tmp_path, "train", documents := markov_documents(200, seed=4))
    rows = TokenRows(tmp_path / "data/pack/train")
    segment_rows, numbers, lengths = rows.segment_table()
    assert np.bincount(numbers, lengths).tolist() == [len(document) + 1 for document in documents]
    valid = (rows.batch(np.arange(rows.n_rows)).labels != IGNORED).sum(axis=1)
    assert np.bincount(segment_rows, lengths).tolist() == valid.tolist()
    some = np.array([3, 0, 0])
    assert rows.n_documents(some).sum() == count_documents(torch.from_numpy(rows.batch(some).segments))
    assert (np.diff(segment_rows) >= 0).all()


def test_shards_are_mapped_not_copied(tmp_path):
    write_split(tmp_path, "train", markov_documents(400, seed=5))
    before = pa.total_allocated_bytes()
    rows = TokenRows(tmp_path / "data/pack/train")
    assert pa.total_allocated_bytes() - before < 1000 < rows.n_rows * CONTEXT * 2
    assert all(not part.input_ids.flags.owndata and not part.input_ids.flags.writeable for part in rows._parts)


def test_two_bytes_hold_65536_ids():
    assert token_dtype(1 << 16) == np.uint16 and token_dtype((1 << 16) + 1) == np.uint32


# Broken files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", markov_documents(400, seed=6))
    return tmp_path / "data/pack/train"


def change(path: Path, edit) -> None:
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[:-100], r"00001.arrow: \d+ bytes, not \d+: the shard is not whole; remove it and run"),
        (lambda data: data + b"x", r"00001.arrow: \d+ bytes, not \d+: the shard is not whole"),
        (lambda data: b"", r"00001.arrow: 0 bytes, not \d+: the shard is not whole"),
        (lambda data: bytes(len(data)), r"00001.arrow: not an Arrow file \(.*\); remove it"),
        (lambda data: data[:-300] + bytes(300), r"00001.arrow: not an Arrow file \(.*\); remove it"),
    ],
)
def test_a_broken_shard_is_refused_by_name(folder, edit, message):
    change(folder / "00001.arrow", edit)
    with pytest.raises(BadInput, match=message):
        TokenRows(folder)


@pytest.mark.parametrize("length", [200, 200_000_000, -5, 0])
def test_segments_that_leave_their_row_are_refused(folder, length):
    """The kernel that writes rows does not look at bounds."""
    with pa.ipc.open_file(str(folder / "00001.arrow")) as reader:
        table = reader.read_all().combine_chunks()
    lengths = table.column("lengths").combine_chunks()
    values = lengths.flatten().to_numpy().copy()
    values[0] = length
    changed = pa.ListArray.from_arrays(lengths.offsets, pa.array(values))
    table = table.set_column(table.schema.get_field_index("lengths"), table.schema.field("lengths"), changed)
    with pa.ipc.new_file(str(folder / "00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["bytes"] = (folder / "00001.arrow").stat().st_size
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"00001.arrow: its segments do not fill rows of \d+; remove it"):
        TokenRows(folder)


def test_garbage_in_a_shard_of_the_right_size_is_refused_or_is_other_tokens(folder):
    """Arrow and numpy would follow a wrong offset out of the file and take the process with them."""
    original, generator = (folder / "00001.arrow").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = np.frombuffer(original, np.uint8).copy()
        data[-generator.integers(1, 1500, 20)] = generator.integers(0, 256, 20)
        (folder / "00001.arrow").write_bytes(data.tobytes())
        try:
            assert TokenRows(folder).n_rows == 288
        except BadInput as error:
            refused += str(error).startswith(str(folder / "00001.arrow"))
    assert refused > 100


def test_a_missing_shard_and_one_of_another_split_are_refused_by_name(folder, tmp_path):
    (folder / "00001.arrow").rename(folder / "kept")
    with pytest.raises(BadInput, match=r"00001.arrow: No such file or directory; remove it and run `dvc checkout`"):
        TokenRows(folder)
    write_split(tmp_path, "validation", markov_documents(40, seed=1))
    other = tmp_path / "data/pack/validation/00000.arrow"
    other.rename(folder / "00001.arrow")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["bytes"] = (folder / "00001.arrow").stat().st_size
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"00001.arrow: not the shard of 32 rows that index.json names"):
        TokenRows(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 0}', r"index.json: version 0 of the row format, not 1; run `dvc repro pack`"),
        ("{}", r"index.json: version None of the row format, not 1"),
        ("[]", r"index.json: version None of the row format, not 1"),
        ('{"version": 1,', r"index.json: not JSON \(.*\); run `dvc repro pack`"),
        (None, r"index.json: No such file or directory; run `dvc repro pack`"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(folder, text, message):
    (folder / "index.json").unlink()
    if text is not None:
        (folder / "index.json").write_text(text)
    with pytest.raises(BadInput, match=message):
        TokenRows(folder)


# The order of training


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4097])
def test_every_epoch_is_a_permutation_of_its_own(n_rows):
    epochs = data_order(n_rows, seed=7, start=0, count=3 * n_rows).reshape(3, n_rows)
    assert (np.sort(epochs, axis=1) == np.arange(n_rows)).all()
    if n_rows >= 16:
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
        assert (data_order(n_rows, 8, 0, n_rows) != epochs[0]).any()


def test_the_order_is_that_of_runs_that_were_made_before():
    assert data_order(10, 7, 0, 20).tolist() == [4, 9, 6, 7, 3, 0, 1, 5, 2, 8, 3, 9, 4, 8, 2, 5, 1, 7, 6, 0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**63), st.lists(st.integers(0, 50), max_size=8), st.integers(0, 10**12))
@example(1, 0, [3, 0, 4], 0)
def test_the_order_is_the_same_however_it_is_asked_for(n_rows, seed, counts, start):
    whole = data_order(n_rows, seed, start, sum(counts))
    parts, place = [], start
    for count in counts:
        parts += data_order(n_rows, seed, place, count).tolist()
        place += count
    assert whole.tolist() == parts


def test_the_order_looks_random():
    """Where a row stands in one epoch says nothing of where it stands in the next, or under another seed."""
    n_rows = 10_000
    orders = [data_order(n_rows, seed, epoch * n_rows, n_rows) for seed in range(3) for epoch in range(3)]
    correlations = np.corrcoef([np.arange(n_rows), *(np.argsort(order) for order in orders)])
    assert np.abs(correlations - np.eye(10)).max() < 5 / np.sqrt(n_rows)
    assert all(abs(np.mean(np.diff(order) == 1)) < 0.002 for order in orders), "neighbours are not kept"


# World sizes


def ids_of(rows: TokenRows, batch_inputs: np.ndarray) -> list[int]:
    """Row numbers from their content; the rows of the test are distinct."""
    every = rows.batch(np.arange(rows.n_rows), np.int32).inputs
    known = {row.tobytes(): number for number, row in enumerate(every)}
    return [known[row.tobytes()] for row in batch_inputs]


@pytest.mark.parametrize("micro_batch", [2, 64])
def test_ranks_share_each_step_without_overlap_or_gap_in_any_world(tmp_path, micro_batch):
    write_split(tmp_path, "train", markov_documents(60, seed=8))
    rows, rows_per_step, seed = TokenRows(tmp_path / "data/pack/train"), 13, 5
    for step in (0, 1001):
        expected = data_order(rows.n_rows, seed, step * rows_per_step, rows_per_step).tolist()
        n_labels = (rows.batch(np.array(expected)).labels != IGNORED).sum()
        for world in range(1, 14):
            seen: list[list[int]] = []
            for rank in range(world):
                batches = Batches(rows, seed, rows_per_step, rank, world, micro_batch, start=step)
                at = batches.at(step)
                batches.close()
                assert all(len(inputs) <= micro_batch for inputs, *_ in at.micro_batches)
                seen.append([number for inputs, *_ in at.micro_batches for number in ids_of(rows, inputs.numpy())])
                assert at.n_labels == n_labels
            assert [seen[place % world][place // world] for place in range(rows_per_step)] == expected


def test_next_gives_the_steps_one_after_another_from_any_start(tmp_path):
    write_split(tmp_path, "train", markov_documents(60, seed=9))
    rows = TokenRows(tmp_path / "data/pack/train")
    batches = Batches(rows, seed=1, rows_per_step=6, rank=1, world=2, micro_batch=2, start=3)
    for step in (3, 4, 5):
        ours, theirs = batches.next(), batches.at(step)
        assert [inputs.tolist() for inputs, *_ in ours.micro_batches] == [
            inputs.tolist() for inputs, *_ in theirs.micro_batches
        ]
    batches.close()


def test_a_world_larger_than_a_step_is_refused(tmp_path):
    write_split(tmp_path, "train", markov_documents(60, seed=9))
    rows = TokenRows(tmp_path / "data/pack/train")
    with pytest.raises(BadInput, match=r"2 rows a step, fewer than execution.n_processes 3; .* at least 48"):
        Batches(rows, 0, rows_per_step=2, rank=0, world=3, micro_batch=1, start=0)
