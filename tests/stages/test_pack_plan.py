"""Which row a document goes to: best fit by its definition, and every slot filled once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pack import least_padding
from stages.pack.plan import BestFitPlan, ConcatPlan, Segments, make_plan, open_plan, save_plan

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=120)
CONTEXTS = st.sampled_from([8, 9, 63, 64, 65, 100])


def whole(plan: BestFitPlan | ConcatPlan) -> Segments:
    return plan.segments(0, plan.n_rows)


def naive_best_fit(lengths: list[int], context_length: int) -> list[list[int]]:
    """In the words of the definition: the lengths in each row."""
    left, rows = Counter(lengths), []
    while left.total():
        space, row = context_length, []
        while fitting := [length for length in left.elements() if length <= space]:
            pairs = [(a, space - a) for a in set(fitting) if a >= space - a and left[space - a] > (2 * a == space)]
            length = max(fitting)
            if row and space not in left and pairs:
                length = min(pairs)[0]
            left -= Counter([length])
            row.append(length)
            space -= length
        rows.append(row)
    return rows


def naive_plan(lengths: list[int], context_length: int) -> list[tuple[int, int, int, int]]:
    """Row, document, offset and length of each segment."""
    found = []
    n_full = 0
    for document, length in enumerate(lengths):
        for offset in range(0, length - context_length + 1, context_length):
            found.append((n_full, document, offset, context_length))
            n_full += 1
    rests = [(length % context_length, document) for document, length in enumerate(lengths) if length % context_length]
    waiting: dict[int, list[int]] = {}
    for rest, document in rests:
        waiting.setdefault(rest, []).append(document)
    for row, chosen in enumerate(naive_best_fit([rest for rest, _ in rests], context_length)):
        for rest in chosen:
            document = waiting[rest].pop(0)
            found.append((n_full + row, document, lengths[document] - rest, rest))
    return sorted(found)


@given(LENGTHS, CONTEXTS)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_best_fit_is_that_of_the_definition(lengths, context_length):
    plan = make_plan("best_fit", np.array(lengths, np.int32), context_length)
    assert list(zip(*map(np.ndarray.tolist, whole(plan)), strict=True)) == naive_plan(lengths, context_length)


@pytest.mark.parametrize("context_length", [8, 257, 5000, 1 << 20])
def test_best_fit_of_many_lengths(context_length):
    lengths = np.random.default_rng(context_length).geometric(1 / (0.6 * min(context_length, 6000)), 300)
    segments = whole(make_plan("best_fit", lengths, context_length))
    assert list(zip(*map(np.ndarray.tolist, segments), strict=True)) == naive_plan(lengths.tolist(), context_length)


@given(LENGTHS, CONTEXTS, st.sampled_from(["best_fit", "concat"]), st.data())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_a_range_of_rows_is_a_part_of_the_whole(lengths, context_length, strategy, data):
    plan = make_plan(strategy, np.array(lengths), context_length)
    first = data.draw(st.integers(0, plan.n_rows))
    last = data.draw(st.integers(first, plan.n_rows))
    inside = (whole(plan).rows >= first) & (whole(plan).rows < last)
    for part, everything in zip(plan.segments(first, last), whole(plan), strict=True):
        assert part.tolist() == everything[inside].tolist()


@given(LENGTHS, CONTEXTS, st.sampled_from(["best_fit", "concat"]))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_plans_fill_each_slot_once(lengths, context_length, strategy):
    plan = make_plan(strategy, np.array(lengths), context_length)
    made = whole(plan)
    slots = sorted(
        (document, offset + slot)
        for document, offset, length in zip(made.documents, made.offsets, made.lengths, strict=True)
        for slot in range(length)
    )
    assert slots == [(document, slot) for document, length in enumerate(lengths) for slot in range(length)]
    assert sorted(set(made.rows.tolist())) == list(range(plan.n_rows))
    assert np.bincount(made.rows, made.lengths).max() <= context_length
    pieces = np.bincount(made.documents)
    fitting = np.array(lengths) <= context_length
    assert plan.needless_cuts == (pieces[fitting] > 1).sum()
    if strategy == "best_fit":
        assert plan.needless_cuts == 0


def test_best_fit_pads_little():
    lengths = np.random.default_rng(0).geometric(1 / 300, 5000)
    plan = make_plan("best_fit", lengths, 256)
    assert 1 - lengths.sum() / (plan.n_rows * 256) < 0.0005


@pytest.mark.parametrize("context_length", [256, 2048, 8192])
def test_without_short_documents_best_fit_pads_hardly_more_than_any_plan_must(context_length):
    lengths = 150 + np.random.default_rng(0).lognormal(6.8, 1.0, 30_000).astype(np.int64)
    plan = make_plan("best_fit", lengths, context_length)
    padding = 1 - lengths.sum() / (plan.n_rows * context_length)
    assert padding <= least_padding(lengths, context_length) + 0.0005


def test_the_examples_of_the_module():
    segments = whole(make_plan("best_fit", np.array([5, 4, 3]), 8))
    assert segments.rows.tolist() == [0, 0, 1] and segments.documents.tolist() == [0, 2, 1]
    plan = make_plan("concat", np.array([5, 4, 3]), 8)
    segments = whole(plan)
    assert segments.rows.tolist() == [0, 0, 1, 1] and segments.lengths.tolist() == [5, 3, 1, 3]
    assert segments.offsets.tolist() == [0, 0, 3, 0] and plan.needless_cuts == 1


@pytest.mark.parametrize("strategy", ["best_fit", "concat"])
def test_no_documents_are_no_rows(strategy):
    plan = make_plan(strategy, np.zeros(0, np.int32), 8)
    assert plan.n_rows == 0 and plan.needless_cuts == 0 and not len(whole(plan).rows)


@pytest.mark.parametrize("strategy", ["best_fit", "concat"])
def test_a_saved_plan_is_the_plan(tmp_path: Path, strategy):
    plan = make_plan(strategy, np.array([5, 4, 30, 3, 8]), 8)
    save_plan(plan, tmp_path / "plan")
    saved = open_plan(tmp_path / "plan")
    assert saved.n_rows == plan.n_rows
    for ours, theirs in zip(whole(saved), whole(plan), strict=True):
        assert ours.tolist() == theirs.tolist()
