"""Guessing tokens from the text itself: the same text comes, drawn or greedy, in fewer passes."""

import pytest
import torch

from model.quantised import PackedDecoder, matrices, quantise
from model.sampling import Sampling
from serving.engine import Engine
from serving.lookup import Lookup
from serving.reader import Reader
from serving.request import Request
from stages.errors import BadInput
from tests.model.test_decoder import KINDS, decoder, tokens
from tests.serving.own_parts import OwnCache
from tests.serving.test_engine import run

CAPACITY = 40
GREEDY, DRAWN = Sampling(temperature=0.0), Sampling(temperature=0.9, top_k=3, repetition_penalty=0.9)


@pytest.mark.parametrize(
    ("text", "guesses"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1, 2]),
        ([7, 2, 3, 9, 1, 2, 3, 4, 8, 2, 3], [4, 8, 2, 3]),  # of two places the later
        ([5, 2, 3, 9, 1, 2, 3, 4, 5, 2, 3], [9, 1, 2, 3]),  # but three tokens before two
        ([1, 2, 1, 2, 1], [2, 1, 2, 1]),
        ([1, 2, 3, 4], []),
        ([1], []),
    ],
)
def test_what_followed_before_may_follow_again(text, guesses):
    assert Lookup(text).guesses(4) == guesses
    assert Lookup(text).guesses(1) == guesses[:1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_same_in_every_kind_of_cache(kind, exported):
    model = decoder(**KINDS[kind])
    prompt = (5, 6, 7, 8, 5, 6, 7, 9, 5, 6)
    requests = [Request(prompt, CAPACITY - len(prompt), sampling, 3) for sampling in (GREEDY, DRAWN)]
    plain, guessing = (Engine(Reader(model, 1, CAPACITY), exported.tokenizer, lookup=lookup) for lookup in (0, 4))
    for request in requests:
        assert run(guessing, [request]) == run(plain, [request])
    assert 0 < guessing.right < guessing.guessed, "or nothing was taken, or nothing taken back"


def test_matrices_in_few_bits_are_refused_since_guesses_would_change_the_text(exported):
    plain = decoder(**KINDS["plain"])
    weights, names = plain.state_dict(), matrices(plain)
    packed = quantise(weights, names, 8, 32)
    rest = {name: tensor for name, tensor in weights.items() if name not in packed}
    reader = Reader(PackedDecoder(plain.config, plain.vocab_size, CAPACITY, packed, rest), 1, CAPACITY)
    with pytest.raises(BadInput, match="--lookup 4: .*open the folder hf"):
        Engine(reader, exported.tokenizer, lookup=4)


@pytest.mark.parametrize("kind", ["plain", "windows", "hybrid"])
def test_wrong_guesses_leave_no_trace(kind):
    model, row = decoder(**KINDS[kind]), tokens(1, CAPACITY)[0].tolist()
    reader, untouched = Reader(model, 1, CAPACITY), Reader(model, 1, CAPACITY)
    most = min(reader.most_guesses, 3)
    for one in (reader, untouched):
        one.fill(0, row[:20], 0)
    for place in range(20, 36, most):
        reader.guess([row[place], *[3] * most], place)
        reader.keep(1)
        untouched.step([row[place]], [place])
        for later in range(place + 1, place + most):
            found, right = (one.step([row[later]], [later]) for one in (reader, untouched))
            torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


def test_right_guesses_spare_passes_and_ends_hold(exported):
    reader, prompt = Reader(exported.model, 1, 128), (5, 6, 7, 8)
    [plain] = run(Engine(reader, exported.tokenizer), [Request(prompt, 80)])
    engine, pieces, steps = Engine(reader, exported.tokenizer, lookup=8), [], 0
    engine.submit(Request(prompt, 80), pieces.append)
    while not engine.idle:
        engine.step()
        steps += 1
    assert [token.id for piece in pieces for token in piece.tokens] == plain
    assert steps == 79 - engine.right < 60, "greedy text of such a model goes round in circles"
    for place in range(20, 80, 7):
        end = plain[place]
        [stopped] = run(Engine(reader, exported.tokenizer, lookup=8), [Request(prompt, 80, ends=frozenset({end}))])
        assert stopped == plain[: plain.index(end)]


def test_others_that_come_stop_the_guessing_and_change_nothing(exported):
    requests = [Request((5, 6, 7, 8, 5, 6, 7), 30, DRAWN, n) for n in range(3)]
    plain = run(Engine(Reader(exported.model, 2, 128), exported.tokenizer), requests)
    assert run(Engine(Reader(exported.model, 2, 128), exported.tokenizer, lookup=3), requests) == plain


def test_a_cache_of_ones_own_is_served_without_guesses(exported):
    requests = [Request((5, 6, 7, 8, 5, 6, 7), 20, DRAWN, n) for n in range(3)]
    own = Reader(decoder(layer_pattern="model.mine.Remembering"), 2, CAPACITY)
    plain = Reader(decoder(), 2, CAPACITY)
    assert run(Engine(own, exported.tokenizer), requests) == run(Engine(plain, exported.tokenizer), requests)
    with pytest.raises(BadInput, match="--lookup 4: model.layer_pattern model.mine.Remembering .* leave it out"):
        Engine(own, exported.tokenizer, lookup=4)


def test_a_cache_that_lacks_what_serving_asks_for_is_refused(monkeypatch):
    monkeypatch.delattr(OwnCache, "copy_row")
    with pytest.raises(BadInput, match="the cache of a layer has no copy_row"):
        Reader(decoder(layer_pattern="model.mine.Remembering"), 1, CAPACITY)
