"""Kneser-Ney against the worked example, a slow dictionary version, and nltk."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from stages.evaluate.events import Events, events_of_documents
from stages.evaluate.kneser_ney import FALLBACK_DISCOUNT, KneserNey, estimate_discounts, fit

END = 3  # vocabulary: 0, 1, 2 and the end


def text(*documents: list[int], vocab_size: int = 4, end: int = END) -> Events:
    return events_of_documents([np.array([*document, end]) for document in documents], end, vocab_size)


def fitted(events: Events, order: int) -> KneserNey:
    return fit(events.keys(order), order, events.base, events.vocab_size)


def probability(model: KneserNey, ngram: tuple[int, ...]) -> float:
    key = 0
    for symbol in ngram:
        key = key * model.base + symbol
    return float(model.probabilities(np.array([key], np.uint64))[0])


def random_text(seed: int, vocab_size: int, n_documents: int = 30) -> Events:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(vocab_size - 1, 0.3))
    lengths = generator.integers(0, 40, size=n_documents)
    documents = [list(generator.choice(vocab_size - 1, p=weights, size=length)) for length in lengths]
    return text(*documents, vocab_size=vocab_size, end=vocab_size - 1)


def ngrams(events: Events, order: int) -> list[tuple[int, ...]]:
    return [tuple(int(s) for s in events.symbols[i - order + 1 : i + 1]) for i in np.flatnonzero(events.is_event)]


class SlowKneserNey:
    """The definition, word for word, with dictionaries."""

    def __init__(self, grams: list[tuple[int, ...]], vocab_size: int):
        self.vocab_size = vocab_size
        self.orders_with_three: set[int] = set()
        self.counts = {len(grams[0]): Counter(grams)}
        for order in range(len(grams[0]) - 1, 0, -1):
            predecessors = defaultdict(set)
            for gram in self.counts[order + 1]:
                predecessors[gram[1:]].add(gram[0])
            self.counts[order] = Counter({gram: len(before) for gram, before in predecessors.items()})

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / self.vocab_size
        counts = self.counts[len(gram)]
        lower = self.probability(gram[1:])
        siblings = [count for other, count in counts.items() if other[:-1] == gram[:-1]]
        if not siblings:
            return lower
        once, twice, thrice, four = (sum(count == n for count in counts.values()) for n in (1, 2, 3, 4))
        y = once / (once + 2 * twice) if once else FALLBACK_DISCOUNT
        discounts = [0, y, y, y]
        if once and twice and thrice and four:
            found = [1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice]
            if all(0 < d <= most for d, most in zip(found, (1, 2, 3), strict=True)):
                discounts = [0, *found]
                self.orders_with_three.add(len(gram))
        saved = sum(discounts[min(count, 3)] for count in siblings)
        return (counts[gram] - discounts[min(counts[gram], 3)]) / sum(siblings) + saved / sum(siblings) * lower


def test_worked_example_of_the_docstring():
    model = fitted(text([0, 1], [0, 2]), order=2)
    assert [level.discounts[1] for level in model.levels] == pytest.approx([0.6, 2 / 3])
    assert probability(model, (0, 1)) == pytest.approx(0.3)
    assert probability(model, (0, 0)) == pytest.approx(2 / 3 * 0.2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_slow_definition(order):
    train, test = random_text(0, 12), random_text(1, 12)
    model, slow = fitted(train, order), SlowKneserNey(ngrams(train, order), 12)
    expected = [slow.probability(gram) for gram in ngrams(test, order)]
    assert model.probabilities(test.keys(order)) == pytest.approx(expected, abs=1e-12)
    assert model.nll(test.keys(order)) == pytest.approx(-sum(math.log(p) for p in expected))
    assert order < 3 or order in slow.orders_with_three, "trigrams of this text have three discounts"


@pytest.mark.parametrize("order", [2, 3])
def test_equals_nltk_where_the_definitions_meet(order):
    """nltk has one discount for all orders and leaves the unigrams as they are, without the uniform."""
    lm = pytest.importorskip("nltk.lm")
    train, test = random_text(2, 9), random_text(3, 9)
    other = lm.KneserNeyInterpolated(order, discount=0.4)
    grams = [tuple(map(str, gram[order - n :])) for n in range(1, order + 1) for gram in ngrams(train, order)]
    other.fit([grams], [str(symbol) for symbol in range(9)])
    model = fitted(train, order)
    discounts = [0.0, *[0.4] * (order - 1)]
    levels = []
    for level, d in zip(model.levels, discounts, strict=True):
        types = np.unique(level.keys // np.uint64(model.base), return_counts=True)[1]
        levels.append(replace(level, discounts=np.array([0, d, d, d]), saved=d * types))
    model = replace(model, levels=tuple(levels))
    for gram in set(ngrams(test, order)):
        *context, last = map(str, gram)
        assert probability(model, gram) == pytest.approx(other.score(last, tuple(context)), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sums_to_one_in_every_context_seen_or_not(order):
    train = random_text(4, 20)
    model = fitted(train, order)
    for context in np.random.default_rng(5).integers(21, size=(50, order - 1)):  # 20 itself is "unknown"
        total = sum(probability(model, (*map(int, context), symbol)) for symbol in range(20))
        assert total == pytest.approx(1, abs=1e-12)


def test_every_symbol_has_a_probability_even_without_training_text():
    never_seen = probability(fitted(text([0, 0, 0]), order=3), (0, 0, 2))
    assert 0 < never_seen < 0.25
    nothing = Events(np.empty(0, np.int64), np.empty(0, bool), 4)
    assert probability(fitted(nothing, order=3), (0, 0, 2)) == 0.25


def test_discounts_by_hand_and_where_there_are_too_few_counts():
    counts = np.repeat([1, 2, 3, 4], [40, 20, 10, 5])
    y = 40 / 80
    expected = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    assert estimate_discounts(counts) == pytest.approx(expected)
    assert estimate_discounts(np.array([1, 1, 2])) == pytest.approx([0, 0.5, 0.5, 0.5])
    assert estimate_discounts(np.array([3, 4])) == pytest.approx([0, *[FALLBACK_DISCOUNT] * 3])
