"""Shingles: the compiled normalisation against regular expressions, and sets of hashes against sets of words."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.shingles import distinct, normalisation_name, shingle_texts
from stages.unicode import LETTER, LONE, MARK, NUMBER, tables
from stages.utf8 import text_buffers
from tests.stages.normalised import normalised_words, shingle_set

OF_EVERY_KIND = "aZ09_ .,-\n\t\0éßİıſKσΣς日本語ไทยก็ခ်한글कि\u0301\u0e34\u200d🙂’—ⅣⒶ²½\U00010400\U00020000"
TEXTS = st.text(st.one_of(st.sampled_from(OF_EVERY_KIND), st.characters(exclude_categories=["Cs"])), max_size=60)


def normalised(*texts: str) -> list[str]:
    shingled = shingle_texts(*text_buffers(pa.array(texts, pa.string())), 5)
    ends = shingled.normal_ends
    return [shingled.normal[ends[at] : ends[at + 1]].tobytes().decode() for at in range(len(texts))]


def sets(*texts: str, ngram: int = 5) -> list[set[int]]:
    shingled = shingle_texts(*text_buffers(pa.array(texts, pa.string())), ngram)
    shingles, ends = distinct(shingled.shingles, shingled.ends)
    parts = [shingles[ends[at] : ends[at + 1]].tolist() for at in range(len(texts))]
    assert all(len(set(part)) == len(part) for part in parts)
    return [set(part) for part in parts]


def test_words_are_lower_case_runs_of_letters_marks_numbers_and_underscores() -> None:
    assert normalised("The cat,\n the CAT!") == ["the cat the cat"]
    assert normalised("snake_case don't x2 -- 3.14", "éÉ ΑΣ") == ["snake_case don t x2 3 14", "éé ασ"]


def test_a_letter_of_a_script_without_spaces_is_a_word() -> None:
    assert normalised("GPT日本語2 ok") == ["gpt 日 本 語 2 ok"]
    assert normalised("กี่ข") == ["กี่ ข"], "marks stay with their letter"
    assert normalised("\u0e34ab") == ["\u0e34ab"], "a mark without a letter before it begins a word like any other"


def test_a_text_without_a_word_is_its_own_text() -> None:
    assert normalised("?!  ", "", "...") == ["?!  ", "", "..."]
    assert len(set.union(*sets("???", "!!!", ""))) == 3


def test_every_character_is_read_as_the_regular_expressions_read_it() -> None:
    """Each alone, before and after a letter, and after one of a script without spaces."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    classes, lower = tables()
    plain = [c for c in characters if classes[ord(c)] == 0 and lower[ord(c)] == ord(c)][::500]
    chosen = [c for c in characters if classes[ord(c)] & (LETTER | MARK | NUMBER | LONE)] + plain
    texts = [" ".join(f"{c} a{c}B 日{c}" for c in chosen[at : at + 100]) for at in range(0, len(chosen), 100)]
    assert normalised(*texts) == [" ".join(normalised_words(text)) for text in texts]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 6))
@example(["", "a", "a b c d e f", "abcdefgh abcdefghi abcdefghijklmnopq"], 3)
@example(["İİİİ" * 20, "ȺȾ" * 30], 2)
def test_any_text_is_normalised_and_cut_as_in_plain_python(texts: list[str], ngram: int) -> None:
    assert normalised(*texts) == [" ".join(normalised_words(text)) for text in texts]
    expected = [shingle_set(text, ngram) for text in texts]
    found = sets(*texts, ngram=ngram)
    for one, other in combinations(range(len(texts)), 2):
        assert len(found[one] & found[other]) == len(expected[one] & expected[other])
    assert [len(item) for item in found] == [len(item) for item in expected]


def test_shingles_come_in_the_order_of_the_words() -> None:
    texts = ["one two three four five six", "zero one two three four five six seven"]
    shingled = shingle_texts(*text_buffers(pa.array(texts)), 5)
    assert np.array_equal(np.diff(shingled.ends), [2, 4])
    assert np.array_equal(shingled.shingles[:2], shingled.shingles[3:5])


def test_a_text_has_the_same_shingles_in_any_company() -> None:
    texts = ["one two", "", "日本語 " * 9, "a much longer text of some ten words or so in all"]
    assert sets(*texts) == [sets(text)[0] for text in texts]
    sliced = pa.array(["before", *texts, "after"]).slice(1, len(texts))
    assert np.array_equal(
        shingle_texts(*text_buffers(sliced), 5).shingles, shingle_texts(*text_buffers(pa.array(texts)), 5).shingles
    )


def test_hashes_of_a_million_shingles_are_distinct() -> None:
    text = " ".join(np.random.default_rng(0).integers(0, 1 << 40, 1_000_000).astype(str))
    assert len(sets(text)[0]) == 1_000_000 - 4


@pytest.mark.parametrize("value", [0, 1])
def test_a_shingle_of_zero_does_not_look_like_a_free_place(value: int) -> None:
    shingles, ends = distinct(np.array([value, 5, value], np.uint64), np.array([0, 3]))
    assert shingles.tolist() == [1, 5] and ends.tolist() == [0, 2]


def test_the_normalisation_has_a_name_that_changes_with_the_table_of_characters() -> None:
    assert normalisation_name().startswith("2-") and len(normalisation_name()) == 18
