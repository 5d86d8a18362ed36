"""perplexity: packing and batching change no loss, and a document is blind to its neighbours in the row."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.config import ModelConfig
from model.decoder import Decoder
from stages import perplexity
from stages.perplexity import DocumentLosses, document_losses, split_loss, to_tensors, token_losses
from stages.tokens import IGNORED_LABEL, TokenRows
from tests.stages.conftest import CONTEXT, VOCABULARY, markov_documents, write_split

CONFIG = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)


def decoder(config: ModelConfig) -> Decoder:
    """Random weights, large enough that every token matters to those after it."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models so small are slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["pre_norm", "post_norm"])
def model(request) -> Decoder:
    post_norm = request.param == "post_norm"
    return decoder(ModelConfig(**{**vars(CONFIG), "pre_norm": not post_norm, "post_norm": post_norm}))


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """Some longer than a row."""
    return markov_documents(40, seed=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, documents) -> TokenRows:
    root = tmp_path_factory.mktemp("workspace")
    write_split(root, "train", documents)
    return TokenRows(root / "data/pack/train")


def loss_alone(model: Decoder, document: np.ndarray) -> float:
    """Nats of a document by itself: plain causal attention, no segments, no padding."""
    inputs, labels = torch.tensor([[0, *document]]), torch.tensor([*document, 0])
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs)[0], labels, reduction="sum"))


def losses_alone(model: Decoder, document: np.ndarray) -> float:
    """A document longer than a row is read in pieces, each from a fresh context."""
    inputs, labels = [0, *document], [*document, 0]
    total = 0.0
    for start in range(0, len(inputs), CONTEXT):
        piece = torch.tensor([inputs[start : start + CONTEXT]])
        with torch.no_grad():
            logits = model(piece)[0]
        total += float(F.cross_entropy(logits, torch.tensor(labels[start : start + CONTEXT]), reduction="sum"))
    return total


def test_rows_lose_what_the_documents_lose_alone(model, rows, documents):
    total, count = split_loss(model, rows, np.arange(rows.n_rows), "cpu")
    assert count == sum(len(document) + 1 for document in documents)
    assert total == pytest.approx(sum(losses_alone(model, document) for document in documents), rel=1e-5)


def test_each_document_loses_in_its_row_what_it_loses_alone(model, rows, documents):
    losses = document_losses(model, rows, "cpu")
    assert losses.labels.tolist() == [len(document) + 1 for document in documents]
    short = [number for number, document in enumerate(documents) if len(document) < CONTEXT]
    assert 10 < len(short) < len(documents)
    np.testing.assert_allclose(losses.nll[short], [loss_alone(model, documents[n]) for n in short], rtol=1e-5)
    np.testing.assert_allclose(losses.nll, [losses_alone(model, document) for document in documents], rtol=1e-5)


def test_documents_add_up_to_the_split(model, rows):
    total, count = split_loss(model, rows, np.arange(rows.n_rows), "cpu")
    losses = document_losses(model, rows, "cpu")
    assert losses.labels.sum() == count
    assert losses.nll.sum() == pytest.approx(total, rel=1e-9)
    assert losses.mean == pytest.approx(total / count, rel=1e-9)


def test_changing_one_document_changes_no_logit_of_another_in_its_row(model, rows):
    ids = np.arange(rows.n_rows)
    batch = rows.batch(ids)
    crowded = ids[(batch.segments.max(axis=1) >= 1)][:4]
    inputs, _, segments, positions = to_tensors(rows.batch(crowded), "cpu")
    with torch.no_grad():
        original = model(inputs, segments, positions)
        for segment in (0, 1, -1):  # -1 is the padding
            changed = torch.where(segments == segment, (inputs + 17) % VOCABULARY, inputs)
            difference = (model(changed, segments, positions) - original).abs().amax(dim=-1)
            assert (difference[segments != segment] == 0).all()
            assert segment < 0 or (difference[segments == segment] > 0).any()


def test_the_loss_does_not_depend_on_how_rows_are_batched(model, rows, monkeypatch):
    ids = np.arange(rows.n_rows)
    expected, per_document = split_loss(model, rows, ids, "cpu"), document_losses(model, rows, "cpu")
    for rows_per_forward in (1, 7, 1000):
        monkeypatch.setattr(perplexity, "ROWS_PER_FORWARD", rows_per_forward)
        assert split_loss(model, rows, ids[::-1], "cpu") == (pytest.approx(expected[0], rel=1e-6), expected[1])
        np.testing.assert_allclose(document_losses(model, rows, "cpu").nll, per_document.nll, rtol=1e-5)


def test_padding_loses_nothing(model, rows):
    batch = rows.batch(np.arange(rows.n_rows))
    losses = token_losses(model, batch, "cpu")
    assert losses.shape == batch.labels.shape and losses.dtype == np.float32
    assert (losses[batch.labels == IGNORED_LABEL] == 0).all()
    assert (losses[batch.labels != IGNORED_LABEL] > 0).all()


def test_a_model_that_knows_nothing_loses_ln_v(rows):
    model = decoder(CONFIG)
    torch.nn.init.zeros_(model.embedding.weight)
    assert document_losses(model, rows, "cpu").mean == pytest.approx(np.log(VOCABULARY), abs=1e-6)


def test_the_mean_is_over_labels_not_over_documents():
    assert DocumentLosses(np.array([20.0, 270.0]), np.array([10, 90])).mean == pytest.approx(2.9)


def test_one_document_in_one_row(tmp_path: Path):
    write_split(tmp_path, "test", [np.array([5, 6, 7])])
    losses = document_losses(model := decoder(CONFIG), TokenRows(tmp_path / "data/pack/test"), "cpu")
    assert losses.nll.tolist() == [pytest.approx(loss_alone(model, np.array([5, 6, 7])), rel=1e-5)]
