"""Losses, intervals, curves and head scores, on rows written by hand."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.evaluate import curves
from stages.evaluate.attention import SCORES, head_scores
from stages.evaluate.baselines import rows_seen
from stages.evaluate.events import events_of_rows
from stages.evaluate.losses import bits_per_byte, bootstrap_interval, label_losses
from stages.evaluate.scoring import Scorer
from stages.order import data_order
from stages.perplexity import document_losses, to_tensors
from stages.tokens import INDEX_VERSION, TokenRows, row_schema

T, VOCAB, SINKS = 8, 30, 2
DOCUMENTS = [[5, 6], [7, 8, 9, 7, 8, 9, 7, 8, 9, 10, 11], [12], [5, 5, 6, 5, 5, 6, 5]]
# <|endoftext|> is 0; document 1 is cut after eight inputs; row 1 holds its rest, document 2 and padding
ROWS = [
    {"documents": [1], "offsets": [0], "lengths": [8]},
    {"documents": [1, 2], "offsets": [8, 0], "lengths": [4, 2]},
    {"documents": [0], "offsets": [0], "lengths": [3]},
    {"documents": [3], "offsets": [0], "lengths": [8]},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> TokenRows:
    folder = tmp_path_factory.mktemp("test")
    table = []
    for row in ROWS:
        inputs, next_ids = [], []
        for document, offset, length in zip(row["documents"], row["offsets"], row["lengths"], strict=True):
            inputs += [0, *DOCUMENTS[document]][offset : offset + length]
            next_ids.append([*DOCUMENTS[document], 0][offset + length - 1])
        table.append({**row, "next_ids": next_ids, "input_ids": inputs + [0] * (T - len(inputs))})
    schema, path = row_schema(T, VOCAB), folder / "00000.arrow"
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(pa.Table.from_pylist(table, schema))
    shard = {"file": path.name, "rows": len(ROWS), "bytes": path.stat().st_size}
    index = {"version": INDEX_VERSION, "context_length": T, "vocab_size": VOCAB, "shards": [shard]}
    (folder / "index.json").write_text(json.dumps(index))
    return TokenRows(folder)


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(
        ModelConfig(n_layers=2, hidden_size=16, n_heads=4, n_kv_heads=2, init_std=0.5, sink_tokens=2), VOCAB
    )
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.output.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def test_a_cut_piece_knows_one_input_before_it(rows):
    events = events_of_rows(rows, np.array([1, 2]), end_of_text=0)
    assert events.symbols.tolist() == [VOCAB, 8, 9, 10, 11, 0, 0, 0, 12, 0, 0, 0, 5, 6, 0]
    assert events.labels().tolist() == [9, 10, 11, 0, 12, 0, 5, 6, 0]
    assert len(events_of_rows(rows, np.array([], np.int64), 0).labels()) == 0


def test_rows_seen_are_those_of_trainings_order_each_once(rows):
    seen, passes = rows_seen(rows, seed=7, n_read=3, max_tokens=10**9)
    assert seen.tolist() == sorted(data_order(4, 7, 0, 3)) and passes == 1
    seen, passes = rows_seen(rows, seed=7, n_read=6, max_tokens=10**9)
    assert seen.tolist() == [0, 1, 2, 3] and passes == 1.5
    assert rows_seen(rows, seed=7, n_read=6, max_tokens=2 * T)[0].tolist() == sorted(data_order(4, 7, 0, 2))
    assert rows_seen(rows, seed=7, n_read=0, max_tokens=5)[0].tolist() == []


def test_every_label_of_every_document_has_one_loss(model, rows):
    losses = label_losses(Scorer(model, "cpu"), rows, "test")
    for number, document in enumerate(DOCUMENTS):
        assert sorted(losses.labels[losses.documents == number]) == sorted([*document, 0])
    assert losses.by_document() == pytest.approx(document_losses(model, rows, "cpu").nll, rel=1e-9)
    alone = torch.tensor([[0, 5, 6]])
    log_p = model(alone)[0].log_softmax(-1).detach()
    assert losses.by_document()[0] == pytest.approx(-float(log_p[0, 5] + log_p[1, 6] + log_p[2, 0]), rel=1e-4)


def test_a_model_that_knows_nothing_needs_ln_v_nats(rows):
    model = Decoder(ModelConfig(n_layers=1, hidden_size=8, n_heads=1, n_kv_heads=1), VOCAB)
    torch.nn.init.zeros_(model.embedding.weight)
    losses = label_losses(Scorer(model.eval(), "cpu"), rows, "test")
    assert losses.nll == pytest.approx(np.full(25, math.log(VOCAB)), rel=1e-6)


def test_bits_per_byte_and_their_interval():
    nll, n_bytes = np.array([100.0, 200.0]), np.array([100, 300])
    assert bits_per_byte(nll, n_bytes) == pytest.approx(300 / math.log(2) / 400)
    assert bootstrap_interval(nll[:1], n_bytes[:1], 100, 0) == pytest.approx([bits_per_byte(nll[:1], n_bytes[:1])] * 2)
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 150, 400)
    rates = generator.normal(1, 0.2, 400)
    low, high = bootstrap_interval(rates * sizes, sizes, 1000, seed=1)
    mean = (rates * sizes).sum() / sizes.sum()
    spread = np.sqrt((((rates - mean) * sizes) ** 2).sum()) / sizes.sum()  # of a ratio, by the delta method
    assert [low, high] == pytest.approx(np.array([mean - 1.96 * spread, mean + 1.96 * spread]) / math.log(2), rel=5e-3)


def test_buckets_hold_every_label_once(model, rows):
    losses = label_losses(Scorer(model, "cpu"), rows, "test")
    by_position = curves.by_position(losses, T)
    assert [position for position, _, _ in by_position] == [0, 1, 2, 3, 4, 6]
    by_frequency = curves.by_frequency(losses, np.array([5, 5, 6, 7, 7, 7]), VOCAB)
    assert [frequency for frequency, _, _ in by_frequency] == [0, 1, 2]
    for curve in (by_position, by_frequency):
        assert sum(n for _, _, n in curve) == 25
        assert sum(loss * n for _, loss, n in curve) == pytest.approx(losses.nll.sum(), rel=1e-5)


def slow_scores(p: torch.Tensor, tokens: list[int]) -> dict[str, list[float]]:
    """Per query of one segment, by the words of the docstring; p is [T, T]."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    for i in range(1, len(tokens)):
        row = p[i].tolist()
        found["entropy"].append(-sum(x * math.log(x) for x in row if x > 0))
        found["distance"].append(sum(x * (i - j) for j, x in enumerate(row[: i + 1])))
        found["first"].append(row[0])
        if i >= SINKS:
            found["sink"].append(sum(row[:SINKS]))
        found["previous"].append(row[i - 1])
        earlier = [j for j in range(i) if tokens[j] == tokens[i]]
        after = [j + 1 for j in earlier if j + 1 < i]
        if earlier:
            found["duplicate"].append(sum(row[j] for j in earlier))
        if after:
            found["induction"].append(sum(row[j] for j in after))
    return found


def test_head_scores_equal_their_definition_on_every_segment_alone(model, rows):
    scores = head_scores(model, rows, 10**6, "cpu").scores
    assert [(s["layer"], s["head"]) for s in scores] == [(i, j) for i in range(2) for j in range(4)]
    places = [place for r in ROWS for place in zip(r["documents"], r["offsets"], r["lengths"], strict=True)]
    segments = [[0, *DOCUMENTS[document]][start : start + length] for document, start, length in places]
    for entry in scores:
        collected: dict[str, list[float]] = {name: [] for name in SCORES}
        for tokens in segments:
            p = probabilities_of_layer(model, tokens, entry["layer"])[entry["head"]]
            for name, values in slow_scores(p, tokens).items():
                collected[name] += values
        for name in SCORES:
            assert entry[name] == pytest.approx(np.mean(collected[name]), abs=2e-5), name


@torch.inference_mode()
def probabilities_of_layer(model: Decoder, tokens: list[int], layer: int) -> torch.Tensor:
    inputs = torch.tensor([tokens])
    context = model.context(inputs)
    x = model.embedding(inputs)
    for block in model.blocks[:layer]:
        x, _ = block(x, context)
    block = model.blocks[layer]
    return block.attention.probabilities(block.attention_norm(x), context)[0]


@torch.inference_mode()
def test_probabilities_are_those_that_the_model_uses(model, rows):
    inputs, _, segments, positions = to_tensors(rows.batch(np.arange(4)), "cpu")
    context = model.context(inputs, segments, positions)
    x, attention = model.embedding(inputs), model.blocks[0].attention
    p = attention.probabilities(x, context)
    assert p.sum(-1) == pytest.approx(torch.ones(p.shape[:3]), abs=1e-5)
    _, _, v_BKTD = attention.project(x, context)
    by_hand = p @ v_BKTD.repeat_interleave(2, dim=1)
    torch.testing.assert_close(attention.output(by_hand.transpose(1, 2).flatten(2)), attention(x, context))


def test_a_head_that_looks_at_everything_alike(rows):
    model = Decoder(ModelConfig(n_layers=1, hidden_size=8, n_heads=2, n_kv_heads=1), VOCAB)
    torch.nn.init.zeros_(model.blocks[0].attention.query.weight)
    [head, _] = head_scores(model.eval(), rows, max_tokens=T, device="cpu").scores  # one row: document 1, eight inputs
    queries = np.arange(1, 8)
    assert head["entropy"] == pytest.approx(np.log(queries + 1).mean(), abs=1e-5)
    assert head["distance"] == pytest.approx((queries / 2).mean(), abs=1e-5)
    assert head["first"] == head["previous"] == pytest.approx((1 / (queries + 1)).mean(), abs=1e-5)
