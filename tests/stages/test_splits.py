"""splits: which text is reserved depends on the raw text and the section `split`, and on nothing else."""

import math
from collections import Counter

import pytest

from stages.splits import SPLITS, SplitParams, split_of

DEFAULT = SplitParams()
TEXTS = [f"document {number}" for number in range(20_000)]


@pytest.mark.parametrize(("validation", "test"), [(0.01, 0.01), (0.1, 0.3), (0.5, 0.001)])
def test_fractions_are_those_asked_for(validation, test):
    params = SplitParams(validation=validation, test=test)
    counts = Counter(split_of(text, params) for text in TEXTS)
    for split, part in (("validation", validation), ("test", test), ("train", 1 - validation - test)):
        sigma = math.sqrt(len(TEXTS) * part * (1 - part))
        assert abs(counts[split] - len(TEXTS) * part) < 4 * sigma, split


def test_the_split_is_a_pure_function_of_the_raw_text():
    known = {"document 0": "train", "document 143": "validation", "document 179": "test"}
    assert {text: split_of(text, DEFAULT) for text in known} == known, "changing these moves text from test to train"
    assert split_of("document 179 ", DEFAULT) == "train", "raw: a space is another text"


def test_a_larger_test_split_keeps_all_of_the_smaller_one():
    larger = SplitParams(test=0.05)
    small = {text for text in TEXTS if split_of(text, DEFAULT) == "test"}
    assert small < {text for text in TEXTS if split_of(text, larger) == "test"}


def test_another_salt_draws_other_text():
    drawn = [{text for text in TEXTS if split_of(text, SplitParams(salt=salt)) == "test"} for salt in ("a", "b")]
    assert len(drawn[0] & drawn[1]) < 0.1 * len(drawn[0])


@pytest.mark.parametrize("text", ["", "\0", "\ud800", "é" * 10_000])
def test_every_text_has_a_split(text):
    assert split_of(text, DEFAULT) in SPLITS


def test_splits_that_leave_no_training_text_are_refused():
    with pytest.raises(ValueError, match=r"validation \+ test is 1.1; it must leave text to train on"):
        SplitParams(validation=0.5, test=0.6)
    for value in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="test"):
            SplitParams(test=value)
