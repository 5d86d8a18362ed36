"""clean: words are those of spaCy, measures are those of datatrove's filters, and each rule drops what it says."""

# ruff: noqa: E501 (lists of samples and wide tables)

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.clean.english import ENGLISH_SHA256, english
from stages.clean.judge import Verdicts, judge
from stages.clean.params import CleanParams
from stages.clean.rules import C4, FINEWEB, GOPHER, LINE_RULES, RECIPES, RULES
from stages.clean.text import normalise
from stages.clean.words import known_runs, split_texts
from stages.utf8 import text_buffers
from tests.stages import plain_filters

PIECES = [
    *"aAbz019.,:;!?()[]{}<>'\"’“—–-_#*&$£+/=@~%^|\\…°é中я😀² \n\t",
    "km", "..", "'s", "n't", "http://", "www.", "Mr.", "e.g.", ":)", "US$", "10", "com", "don't", "the ", "of ", "word ",
    "ภาษา", "\u0303", "\n\n", " - ", "• ", "The end. ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
SENTENCES = ["The cat sat.", "A dog ran!", "lorem ipsum", "JavaScript is on.", "We use cookies here.", "It is [12] so.",
             "- item", "A well[1]-known cat.", "He said ...", "x" * 20, "{ }", "One? Two. Three", "of the and", "Mr. X (U.S.) left.", "中文。"]  # fmt: skip
PAGES = st.lists(
    st.tuples(st.sampled_from(SENTENCES), st.sampled_from([" ", "\n", "\n\n"])), min_size=1, max_size=25
).map(lambda parts: normalise("".join(part + end for part, end in parts)))


def verdict(text: str, **params: object) -> tuple[str | None, float, str]:
    found = verdicts([text], **params)
    rule = RULES[found.rules[0]] if found.rules[0] >= 0 else None
    return rule, float(found.values[0]), found.texts[0] if found.texts else text


def verdicts(texts: list[str], **params: object) -> Verdicts:
    return judge(*text_buffers(pa.array(texts, pa.large_string())), CleanParams(**{"recipe": "none", **params}))


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(\"Don't", "( \" Do n't"),
        ("They\u2019ll cannot", "They \u2019ll can not"),
        ("10km/h, 5$ 3MB.", "10 km/h , 5 $ 3 MB ."),
        ("e.g. Mr. Smith etc.", "e.g. Mr. Smith etc ."),
        ("well-known and/or x=y", "well - known and/or x = y"),
        ("f(x): :-) C++", "f(x ): :-) C++"),
        ("see www.example.com/a-b, or ada@b.org.", "see www.example.com/a-b , or ada@b.org ."),
        ("end.Next wait...what", "end . Next wait ... what"),
        ("I live in the U.S.", "I live in the U.S."),
        ("ภาษา 猫が。", "ภาษา 猫が 。"),
    ],
)
def test_words_are_those_of_spacy(text: str, words: str) -> None:
    assert split_texts([text], english())[0] == words.split()


@settings(max_examples=200)
@given(TEXTS | st.text(max_size=40))
def test_words_are_those_of_the_plain_rules(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert split_texts([text], english())[0] == plain_filters.words_of(text)


def test_what_was_judged_before_changes_no_verdict() -> None:
    texts = [f"{run} and www.x{run}.com (it's 5km) of {run}-{run}. " * 9 for run in ("a", "b1", "don't", "中文")]
    known_runs.cache_clear()
    alone = [verdicts([text], **C4, **GOPHER) for text in texts]
    together = verdicts(texts[::-1], **C4, **GOPHER)
    assert [int(found.rules[0]) for found in alone] == together.rules[::-1].tolist()
    assert [float(found.values[0]) for found in alone] == together.values[::-1].tolist()


@given(st.text(max_size=80))
def test_words_hold_every_character_but_white_space(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert "".join(split_texts([text], english())[0]) == "".join(text.split())


def test_the_table_of_english_is_the_one_that_the_code_knows() -> None:
    path = Path(plain_filters.__file__).parents[2] / "stages/clean/english.txt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == ENGLISH_SHA256


# Measures


@settings(max_examples=60, deadline=None)
@given(PAGES | TEXTS.map(normalise), st.data())
def test_gophers_measures_are_the_plain_ones(text: str, data: st.DataObject) -> None:
    if not text.strip():
        assert verdict(text)[0] == "empty"
        return
    measures = plain_filters.gopher_measures(text, CleanParams().stop_words)
    rule = data.draw(st.sampled_from([rule for rule in GOPHER if rule in measures]))
    value = measures[rule]
    threshold = max(value + (1e-6 if rule.startswith("min_") else -1e-6), 0 if "ratio" in rule else 1e-9)
    if rule in ("min_words", "max_words", "min_stop_words"):
        threshold = round(value) + (1 if rule.startswith("min_") else -1)
        if threshold < 1 or (rule == "min_stop_words" and threshold > 8):
            return
    if "ratio" in rule and threshold > 1:
        return
    dropped, found, _ = verdict(text, **{rule: threshold})
    fails = value < threshold if rule.startswith("min_") else value > threshold
    assert (dropped, found) == ((rule, pytest.approx(value)) if fails else (None, found))


@settings(max_examples=60, deadline=None)
@given(PAGES, st.data())
def test_the_measures_of_a_page_are_the_plain_ones(text: str, data: st.DataObject) -> None:
    if not text.strip():
        return
    measures = plain_filters.page_measures(text, 10)
    rule = data.draw(st.sampled_from(list(measures)))
    value = measures[rule]
    threshold = value + 1e-6 if rule.startswith("min_") else value - 1e-6
    if rule == "min_sentences":
        threshold = round(value) + 1
    if "ratio" in rule and not 0 <= threshold <= 1:
        return
    assert verdict(text, **{rule: threshold}, short_line_length=10)[:2] == (rule, pytest.approx(value))


@settings(max_examples=60, deadline=None)
@given(PAGES, st.fixed_dictionaries({rule: st.booleans() for rule in C4 if rule.startswith("drop")}), st.integers(1, 4))
def test_the_lines_that_stay_are_the_plain_ones(text: str, on: dict, fewest: int) -> None:
    params = {**on, "min_line_words": fewest, "max_line_word_length": 15}
    kept = plain_filters.kept_lines(text, params)
    rule, _, found = verdict(text, **params)
    if not text.strip():
        return
    if kept is None:
        assert rule in ("drop_lorem_ipsum", "drop_curly_brackets")
    elif not plain_filters.words_of(kept):
        assert rule == "empty"
    else:
        assert (rule, found) == (None, kept)


# Rules

PROSE = (
    "The quick brown fox jumps over a lazy dog while seven wizards quietly mix strange potions beneath old bridges "
    "and nobody in town remembers why those lanterns burn. Of the two, one must be right and have his way with it."
)
DROPPED = {
    "empty": "  \n",
    "max_duplicate_paragraph_ratio": "\n\n".join(["One.", "Two.", PROSE] * 2),
    "max_duplicate_paragraph_character_ratio": f"{PROSE}\n\nOne.\n\nTwo.\n\n{PROSE}",
    "max_duplicate_line_ratio": "One.\nTwo.\n" * 3 + PROSE,
    "max_duplicate_line_character_ratio": f"{PROSE}\nOne.\nTwo.\nThree.\n{PROSE}",
    "max_top_2gram_ratio": " ".join(f"hello there {word}" for word in PROSE.split()),
    "max_top_3gram_ratio": " ".join(f"hello there you {word}" for word in PROSE.split()),
    "max_top_4gram_ratio": " ".join(f"hello there you all {word}" for word in PROSE.split()),
    **{f"max_duplicate_{n}gram_ratio": f"{PROSE} But {PROSE}" for n in range(5, 11)},
    "min_words": "Too short.",
    "max_words": PROSE,
    "min_mean_word_length": " ".join(chr(97 + i % 26) + chr(97 + i // 26) for i in range(60)),
    "max_mean_word_length": " ".join(f"{chr(97 + i)}" * 15 for i in range(24)),
    "max_hash_ratio": "# " * 10 + PROSE,
    "max_ellipsis_ratio": "well ... " * 10 + PROSE,
    "max_bullet_line_ratio": "- one of them\n\u2022 two",
    "max_ellipsis_line_ratio": "Read more...\nAnd so on \u2026",
    "min_alphabetic_ratio": " ".join(str(1000 + i) for i in range(60)),
    "min_stop_words": "colourless green ideas sleep furiously",
    "drop_lorem_ipsum": f"{PROSE} Lorem ipsum dolor.",
    "drop_curly_brackets": f"{PROSE} {{}}",
    "min_sentences": "One. Two.",
    "min_punctuated_line_ratio": "no stop\nnone here",
    "max_short_line_ratio": "short\nshort too",
    "max_repeated_line_ratio": f"{PROSE}\n{PROSE}",
    "max_line_end_ratio": "a\nb\nc",
}


@pytest.mark.parametrize("rule", RULES[1:])
def test_each_rule_drops_and_can_be_off(rule: str) -> None:
    threshold = 10 if rule == "max_words" else {**GOPHER, **C4, **FINEWEB}[rule]
    assert verdict(DROPPED[rule], **{rule: threshold})[0] == rule
    assert verdict(PROSE, **{rule: threshold})[0] in (None, "min_words", "max_words", "min_sentences")
    assert verdict(DROPPED[rule])[0] is None


def test_a_document_without_a_word_is_always_dropped() -> None:
    assert verdict(DROPPED["empty"])[0] == verdict("")[0] == "empty"
    assert verdict("no full stop", drop_unpunctuated_lines=True)[0] == "empty"


def test_rules_on_lines_remove_lines_and_count_them() -> None:
    text = "Keep this line, please.\nno stop here\nToo short.\nWe use cookies on it.\nAs shown[3] it holds."
    found = verdicts([text], recipe="c4", min_sentences=None)
    assert found.texts == ["Keep this line, please.\nAs shown it holds."]
    assert dict(zip(LINE_RULES, found.lines_removed.tolist(), strict=True)) == {
        **dict.fromkeys(LINE_RULES, 0), "drop_unpunctuated_lines": 1, "min_line_words": 1, "drop_policy_lines": 1,
    }  # fmt: skip


def test_verdicts_do_not_depend_on_neighbours_or_room() -> None:
    texts = [PROSE, "", *DROPPED.values(), "a " * 20_000, "." * 5000, "):" * 3000, "\n".join("ab" * 3000)]
    together = verdicts(texts, recipe="fineweb")
    alone = [verdict(text, recipe="fineweb") for text in texts]
    assert [RULES[rule] if rule >= 0 else None for rule in together.rules] == [rule for rule, _, _ in alone]
    assert together.texts == [text if rule is None else "" for rule, _, text in alone]


def test_recipes_name_rules_and_a_param_goes_before_its_recipe() -> None:
    for recipe in RECIPES.values():
        assert recipe.keys() <= {*RULES, *LINE_RULES}
    assert verdict(DROPPED["max_hash_ratio"], recipe="gopher", min_words=None)[0] == "max_top_4gram_ratio"
    off = dict.fromkeys(rule for rule in GOPHER if rule != "max_hash_ratio")
    assert verdict(DROPPED["max_hash_ratio"], recipe="gopher", **off)[0] == "max_hash_ratio"
    assert verdict(DROPPED["max_hash_ratio"], recipe="gopher", **off, max_hash_ratio=None)[0] is None


def test_contradicting_thresholds_are_refused() -> None:
    with pytest.raises(ValueError, match="min_words 30 is above max_words 20"):
        CleanParams(min_words=30, max_words=20)
    with pytest.raises(ValueError, match="min_stop_words 2 asks for more words than stop_words has"):
        CleanParams(recipe="gopher", stop_words=["the"])
