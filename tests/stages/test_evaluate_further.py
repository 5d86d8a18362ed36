"""Overlapping windows, what the model wrote, and maps of the embedding, on inputs written by hand."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.evaluate.embeddings import NEIGHBOURS, embedding_map, pca
from stages.evaluate.generation import covered, longest_matches, quality
from stages.evaluate.scoring import Scorer
from stages.evaluate.strided import Window, document_nll, windows_of
from stages.tokens import Batch

VOCABULARY, END = 40, 0


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(
        ModelConfig(n_layers=2, hidden_size=16, n_heads=2, n_kv_heads=1, residual_init="normal"), VOCABULARY
    )
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def test_windows_are_those_of_the_docstring():
    assert list(windows_of([14], 8, 0.5)) == [Window(0, 0, 0, 8), Window(0, 4, 8, 12), Window(0, 6, 12, 14)]
    assert list(windows_of([14, 3], 8, 0)) == [Window(0, 0, 0, 8), Window(0, 8, 8, 14), Window(1, 0, 0, 3)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.95])
def test_every_label_counts_once_and_has_its_context(overlap):
    for length in range(1, 60):
        windows = list(windows_of([length], 8, overlap))
        assert [slot for w in windows for slot in range(w.counted, w.end)] == list(range(length))
        assert all(w.end - w.start <= 8 for w in windows)
        assert all(w.counted - w.start >= int(8 * overlap) - 1 for w in windows[1:])


@torch.inference_mode()
def test_strided_losses_are_those_of_the_windows_read_one_by_one(model):
    generator = np.random.default_rng(0)
    documents = [np.append(generator.integers(1, VOCABULARY, n), END) for n in (3, 30, 8, 1, 17)]
    found = document_nll(Scorer(model, "cpu"), documents, END, 8, 0.5, "test")
    for number, document in enumerate(documents):
        inputs, expected = np.append(END, document[:-1]), 0.0
        for _, start, counted, end in windows_of([len(document)], 8, 0.5):
            log_p = model(torch.from_numpy(inputs[start:end])[None])[0].log_softmax(-1)
            expected -= float(log_p[torch.arange(counted - start, end - start), document[counted:end]].sum())
        assert found[number] == pytest.approx(expected, rel=1e-5)


def test_variety_is_counted_as_in_the_docstring():
    a, b, c, d = range(4)
    figures = quality([[a, b, c, a, b, c, d]], [True], [np.zeros(7, np.int64)])
    assert figures["generated_distinct_1"] == pytest.approx(4 / 7)
    assert figures["generated_distinct_2"] == pytest.approx(4 / 6)
    assert figures["generated_repetition"] == 0 and figures["generated_length"] == 7
    assert figures["generated_finished"] == 1
    assert quality([[a] * 8], [False], [np.zeros(8, np.int64)])["generated_repetition"] == pytest.approx(0.8)
    assert set(quality([], [], [])) == set(figures)


class Rows:
    """Two rows of ten slots: two documents in the first, one and padding in the second."""

    n_rows = 2

    def batch(self, row_ids: np.ndarray) -> Batch:
        inputs = np.array([[0, 5, 6, 7, 8, 0, 9, 10, 11, 12], [0, 20, 21, 22, 20, 21, 23, 1, 1, 1]])
        segments = np.array([[0] * 5 + [1] * 5, [0] * 7 + [-1] * 3])
        return Batch(inputs[row_ids], inputs[row_ids], segments[row_ids], segments[row_ids])


def test_the_longest_match_stays_within_one_document_and_leaves_padding_out():
    texts = [[6, 7, 8, 9, 10], [20, 21, 23, 1, 1], [12, 20, 21, 22], [30, 31]]
    found = longest_matches(texts, Rows(), np.arange(2))
    assert [match.tolist() for match in found] == [[3, 2, 1, 2, 1], [3, 2, 1, 0, 0], [1, 3, 2, 1], [0, 0]]
    assert longest_matches(texts, Rows(), np.array([0]))[1].tolist() == [0, 0, 0, 0, 0], "only rows that were read"
    assert longest_matches([], Rows(), np.arange(2)) == []


def test_the_longest_match_is_that_of_a_search_in_plain_text():
    generator = np.random.default_rng(1)
    row = generator.integers(2, 6, 400)

    class Row:
        def batch(self, row_ids: np.ndarray) -> Batch:
            return Batch(row[None], row[None], np.zeros((1, 400), np.int64), np.arange(400)[None])

    text = generator.integers(2, 6, 60)
    string, pieces = bytes(row.tolist()), bytes(text.tolist())
    [found] = longest_matches([text.tolist()], Row(), np.array([0]))
    for start in range(60):
        assert found[start] == max(n for n in range(61 - start) if pieces[start : start + n] in string)


def test_memorised_tokens_lie_in_long_matches():
    match = np.zeros(40, np.int64)
    match[3], match[10], match[35] = 16, 20, 4
    assert np.flatnonzero(covered(match)).tolist() == list(range(3, 30))


def test_principal_components_are_the_singular_value_decomposition_up_to_sign():
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    places, explained = pca(vectors)
    centred = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(places) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-9)
    assert explained == pytest.approx((s**2 / (s**2).sum())[:2])


def test_the_map_holds_the_most_frequent_tokens_and_their_nearest():
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(30, 8)).astype(np.float32)
    weight[7] = 2 * weight[3]
    frequency = np.arange(30)
    found = embedding_map(weight, frequency, 12, seed=0)
    assert found.tokens == list(range(29, 17, -1)) and found.frequency == found.tokens
    assert len(found.pca) == len(found.tsne) == 12 and all(len(near) == NEIGHBOURS for near in found.neighbours)
    assert found == embedding_map(weight, frequency, 12, seed=0), "equal inputs, equal maps"
    all_of_them = embedding_map(weight, frequency, 100, seed=0)
    assert 0 not in all_of_them.tokens, "a token that never occurs is not mapped"
    assert all_of_them.neighbours[all_of_them.tokens.index(3)][0] == (7, 1.0)
    assert embedding_map(weight, frequency, 0, seed=0).tokens == []
