"""Sampling: the distribution that is drawn from, and the loop around it."""

import numpy as np
import pytest
import torch
from scipy import stats

from model.config import ModelConfig
from model.decoder import Decoder
from model.sampling import Counts, Sampling, draw, generate, penalised, probabilities

FOUR = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def distribution(**settings) -> list[float]:
    return probabilities(FOUR, Sampling(**settings))[0].tolist()


def counts(prompt: list[int], written: list[int], vocab_size: int = 4) -> Counts:
    found = Counts(prompt, vocab_size)
    for token in written:
        found.write(token)
    return found


def test_penalties_are_for_tokens_that_stand_in_the_text():
    logits = torch.tensor([2.0, -1.0, 3.0, 1.0])
    assert penalised(logits, Sampling(), counts([0], [1])) is logits
    assert penalised(logits, Sampling(repetition_penalty=2.0), counts([0], [1])).tolist() == [1, -2, 3, 1]
    changed = penalised(logits, Sampling(presence_penalty=0.5, frequency_penalty=1.0), counts([0], [1, 3, 3]))
    assert changed.tolist() == [2, -2.5, 3, -1.5], "the prompt counts for repetition_penalty alone"


def test_worked_examples():
    assert distribution() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert distribution(temperature=0) == [1, 0, 0, 0]
    assert distribution(temperature=0.5) == pytest.approx([x**2 / 0.365 for x in (0.5, 0.3, 0.15, 0.05)], rel=1e-5)
    assert distribution(top_k=3) == pytest.approx([x / 0.95 for x in (0.5, 0.3, 0.15)] + [0], rel=1e-5)
    assert distribution(top_p=0.81) == pytest.approx([x / 0.95 for x in (0.5, 0.3, 0.15)] + [0], rel=1e-5)
    assert distribution(min_p=0.25) == pytest.approx([x / 0.95 for x in (0.5, 0.3, 0.15)] + [0], rel=1e-5)
    assert distribution(top_p=0.0) == [1, 0, 0, 0], "the most probable token is always left"
    assert distribution(top_k=2, top_p=0.6) == [1, 0, 0, 0], "top-p counts what top-k left: 0.625 is enough"


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-5])
def test_a_temperature_just_above_zero_is_as_good_as_greedy(temperature):
    logits = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)) * 3
    sampling, generators = Sampling(temperature=temperature), [torch.Generator().manual_seed(0)] * 4
    assert draw(logits, sampling, generators) == logits.argmax(-1).tolist()


def test_the_strongest_penalties_leave_numbers():
    logits = torch.tensor([3e38, -3e38, 1.0])
    for penalty in (0.01, 1e10):
        sampling = Sampling(repetition_penalty=penalty)
        assert probabilities(penalised(logits, sampling, counts([0], [1], 3))[None], sampling).isfinite().all()


def test_a_drawn_token_is_of_the_vocabulary_even_where_the_model_gives_no_numbers():
    assert draw(torch.full((1, 128), torch.nan), Sampling(), [torch.Generator()]) == [127]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    full = logits.double().softmax(-1)
    kept = probabilities(logits, Sampling(top_p=top_p)) > 0
    for p, k in zip(full, kept, strict=True):
        assert p[k].sum() >= top_p
        assert p[k].sum() - p[k].min() < top_p
        assert p[k].min() >= p[~k].max()


def test_equal_tokens_are_cut_off_from_the_higher_ids():
    assert (probabilities(torch.zeros(1, 5), Sampling(top_k=2))[0] > 0).tolist() == [True, True, False, False, False]


def test_draws_follow_the_distribution():
    logits = torch.linspace(-2, 2, 10)[None]
    n, generator = 20_000, torch.Generator().manual_seed(1)
    drawn = draw(logits.expand(n, -1), Sampling(temperature=0.7), [generator] * n)
    expected = probabilities(logits, Sampling(temperature=0.7))[0].numpy() * n
    assert stats.chisquare(np.bincount(drawn, minlength=10), expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"presence_penalty": 3.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="it must be"):
        Sampling(**settings)


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = Decoder(ModelConfig(n_layers=1, hidden_size=16, n_heads=2, n_kv_heads=1, init_std=0.5), vocab_size=20)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def continuations(model: Decoder, prompts: list[list[int]], stop: int = 99, **settings) -> list[list[int]]:
    return generate(model, prompts, 12, 8, stop, Sampling(**settings), seed=3)


def test_a_sequence_does_not_depend_on_its_company(model):
    prompts = [[1], [2, 3, 4], [5, 6]]
    together = continuations(model, prompts)
    assert together[0] == continuations(model, prompts[:1])[0]
    assert together == continuations(model, prompts), "the same seed gives the same text"
    longer_company = continuations(model, [[1], [7] * 8])
    assert together[0] == longer_company[0]


def test_greedy_takes_the_most_probable_token_of_the_last_eight(model):
    [tokens] = continuations(model, [[1, 2, 3]], temperature=0)
    sequence = [1, 2, 3]
    for _ in range(12):
        sequence.append(int(model(torch.tensor([sequence[-8:]]))[0, -1].argmax()))
    assert tokens == sequence[3:]


def test_ends_before_the_stop_token(model):
    [free] = continuations(model, [[1, 2, 3]])
    [stopped] = continuations(model, [[1, 2, 3]], stop=free[4])
    assert stopped == free[: free.index(free[4])]


def test_penalties_count_what_was_written_before(model):
    prompt = [1, 2, 3]
    [tokens] = continuations(model, [prompt], temperature=0, repetition_penalty=3.0, frequency_penalty=0.5)
    sequence, sampling = list(prompt), Sampling(repetition_penalty=3.0, frequency_penalty=0.5)
    for _ in range(12):
        logits_V = model(torch.tensor([sequence[-8:]]))[0, -1]
        sequence.append(int(penalised(logits_V, sampling, counts(prompt, sequence[3:], 20)).argmax()))
    assert tokens == sequence[3:]
