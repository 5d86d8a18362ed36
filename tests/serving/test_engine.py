"""The engine: a request gets the tokens that it would get alone, whatever runs beside, in every kind of attention."""

import random

import pytest
import torch

from model.sampling import Sampling, generate
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Request
from tests.model.test_decoder import KINDS, decoder, tokens

CAPACITY = 40  # the context of these decoders


def request(number: int, most: int = 12, **settings) -> Request:
    generator = random.Random(number)
    prompt = tuple(generator.randrange(2, 90) for _ in range(generator.randrange(1, 28)))
    return Request(prompt, most, settings.pop("sampling", Sampling(temperature=0.9, top_p=0.95)), number, **settings)


def run(engine: Engine, requests) -> list[list[int]]:
    """Token ids of each request, handed in one by one while others run."""
    collected = [[] for _ in requests]
    for one, pieces in zip(requests, collected, strict=True):
        engine.submit(one, pieces.append)
        engine.step()
    while not engine.idle:
        engine.step()
    return [[token.id for piece in pieces for token in piece.tokens] for pieces in collected]


@pytest.mark.parametrize("kind", KINDS)
def test_beside_others_as_alone(kind, exported):
    model = decoder(**KINDS[kind])
    requests = [request(n, sampling=Sampling(temperature=0.0)) if n % 3 == 0 else request(n) for n in range(7)]
    together = run(Engine(Reader(model, 3, CAPACITY), exported.tokenizer, chunk=16), requests)
    alone = [run(Engine(Reader(model, 1, CAPACITY), exported.tokenizer, chunk=16), [one])[0] for one in requests]
    assert together == alone
    assert together == run(Engine(Reader(model, 5, CAPACITY), exported.tokenizer, chunk=16), requests[::-1])[::-1]


@pytest.mark.parametrize("chunk", [1, 3, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(kind, chunk):
    model, row = decoder(**KINDS[kind]), tokens(1, 40)[0].tolist()
    reader = Reader(model, 2, CAPACITY)
    for start in range(0, len(row), chunk):
        logits_V = reader.fill(1, row[start : start + chunk], start)
    with torch.no_grad():
        torch.testing.assert_close(logits_V, model(torch.tensor([row]))[0, -1], atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_tokens(engine):
    first, second, other = (Request((5, 6), 20, Sampling(), seed) for seed in (1, 1, 2))
    found = run(engine, [first, second, other])
    assert found[0] == found[1] != found[2]


def test_penalties_are_those_of_generate(exported):
    sampling = Sampling(temperature=0.9, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.5)
    requests = [request(n, sampling=sampling) for n in range(4)]
    found = run(Engine(Reader(exported.model, 2, 128), exported.tokenizer, chunk=16), requests)
    prompts = [one.prompt for one in requests]
    assert found == [generate(exported.model, [p], 12, 128, -1, sampling, n)[0] for n, p in enumerate(prompts)]


def test_more_requests_than_rows_wait_in_line(engine):
    for number in range(8):
        engine.submit(request(number), lambda piece: None)
    engine.step()
    assert (len(engine.running), len(engine.waiting)) == (3, 5)
    while not engine.idle:
        engine.step()
        assert len(engine.running) <= 3
    assert engine.cache_use == 0


def test_of_two_prompts_the_older_is_read_first_whatever_rows_they_have(engine):
    engine.submit(Request((5,), 2), lambda piece: None)  # ends first, and the last row moves into its row
    old, new = (engine.submit(Request((5,) * 100, 2), lambda piece: None) for _ in range(2))
    while not new.read:
        engine.step()
    assert engine.running[0] is new, "it has the first row"
    assert old.draws, "and waited nonetheless"


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_request_frees_its_row_and_disturbs_nobody(exported, steps):
    def engine():
        return Engine(Reader(exported.model, 2, 128), exported.tokenizer, chunk=16)

    alone = run(engine(), [request(5)])
    busy, kept, last = engine(), [], []
    gone = busy.submit(request(1, most=60), last.append)
    busy.submit(request(5), kept.append)
    for _ in range(steps):
        busy.step()
    gone.cancelled = True
    while not busy.idle:
        busy.step()
    assert last[-1].finish == "cancelled"
    assert [[token.id for piece in kept for token in piece.tokens]] == alone


def test_ends_at_an_end_token_at_a_stop_string_or_at_the_limit(engine):
    [free] = run(engine, [request(3, 30)])
    pieces = {"end": [], "limit": [], "stop": []}
    engine.submit(request(3, 30, ends=frozenset({free[4]})), pieces["end"].append)
    engine.submit(request(3, 30), pieces["limit"].append)
    while not engine.idle:
        engine.step()
    text = "".join(piece.text for piece in pieces["limit"])
    engine.submit(request(3, 30, stop=(text[10:13],)), pieces["stop"].append)
    while not engine.idle:
        engine.step()
    assert {name: found[-1].finish for name, found in pieces.items()} == {
        "end": "stop", "limit": "length", "stop": "stop",
    }  # fmt: skip
    assert [token.id for piece in pieces["end"] for token in piece.tokens] == free[: free.index(free[4])]
    assert "".join(piece.text for piece in pieces["stop"]) == text[: text.index(text[10:13])]


def test_probabilities_are_those_of_the_model(engine, exported):
    pieces = []
    asked = Request((5, 6, 7), 3, Sampling(temperature=0.5, top_k=2), 0, top_logprobs=4)
    engine.submit(asked, pieces.append)
    while not engine.idle:
        engine.step()
    sequence = [5, 6, 7]
    for token in [token for piece in pieces for token in piece.tokens]:
        with torch.no_grad():
            logprobs = exported.model(torch.tensor([sequence]))[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == logprobs.topk(4).indices.tolist()
        sequence.append(token.id)


def test_of_a_small_vocabulary_there_are_no_more_alternatives_than_tokens(exported):
    pieces, engine = [], Engine(Reader(decoder(vocab_size=8), 1, CAPACITY), exported.tokenizer)
    engine.submit(Request((5, 6, 7), 2, top_logprobs=20), pieces.append)
    while not engine.idle:
        engine.step()
    assert [len(token.top) for piece in pieces for token in piece.tokens] == [8, 8]


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(ValueError, match="do not fit"):
        engine.submit(Request((1,) * 100, 29), print)
    with pytest.raises(ValueError, match="at least one"):
        engine.submit(Request((), 5), print)


@pytest.mark.parametrize("at_fault", ["draw", "described"])
def test_a_request_that_raises_an_error_ends_alone(engine, monkeypatch, at_fault):
    import serving.engine

    alone, real, of_bad = run(engine, [request(5)]), getattr(serving.engine, at_fault), []

    def fails(*arguments):
        last = arguments[-1]  # the generators of `draw`, top_logprobs of `described`
        if last == 7 or (isinstance(last, list) and of_bad[0] in last):
            raise IndexError("of this request")
        return real(*arguments)

    monkeypatch.setattr(serving.engine, at_fault, fails)
    bad, good = [], []
    of_bad.append(engine.submit(request(1, top_logprobs=7), bad.append).generator)
    engine.submit(request(5), good.append)
    while not engine.idle:
        engine.step()
    assert [piece.finish for piece in bad] == ["error"]
    assert [[token.id for piece in good for token in piece.tokens]] == alone
