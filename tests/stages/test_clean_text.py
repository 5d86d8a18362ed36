"""clean: what happens to a text before rules judge it, and to what is kept."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.clean.html_text import html_to_text
from stages.clean.language import language_of
from stages.clean.privacy import mask
from stages.clean.text import normalise, repair


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\r\nb\x0bc\x0cd\x00\x1c", "a\nb\nc\nd"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("a\0b\x07c\ufeff", "abc"),
        ("a\u00a0b", "a b"),
        ("if x:  \n\treturn 1\n    y = 2", "if x:\n\treturn 1\n    y = 2"),
        ("one\n\ntwo\n\n\nthree\n\n\n\n\n\nfour", "one\n\ntwo\n\n\nthree\n\n\nfour"),
        ("\n \n    indented\n\n", "    indented"),
        (" \n\t\n", ""),
    ],
)
def test_normalising_keeps_paragraphs_and_indentation(raw: str, expected: str) -> None:
    assert normalise(raw) == expected
    assert normalise(raw + "\n\u00e9") == f"{expected}\n\u00e9".lstrip("\n") or not expected or raw.endswith("\n")


@given(st.text() | st.text(st.sampled_from("ab \t\n\r\x0b\x0c\x1c\0")))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not [c for c in once if unicodedata.category(c) in ("Cc", "Zs") and c not in "\n\t "]
    assert not [line for line in once.split("\n") if line != line.rstrip()]


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_takes_a_short_way_to_the_same_text(text: str) -> None:
    assert normalise(text) == normalise(text + "\n\u00e9").removesuffix("\u00e9").rstrip("\n")


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "it\u2019s \u201chere\u201d", "na\u00efve \u2014 \u65e5\u672c", "\U0001f642"]
)
def test_wrongly_decoded_text_is_put_right_and_right_text_stays(text: str) -> None:
    wrong = text.encode().decode("cp1252", "ignore")
    assert repair(text) == text
    if text.encode().decode("cp1252", "replace").isprintable() and "\ufffd" not in text.encode().decode(
        "cp1252", "replace"
    ):
        assert repair(wrong) == text


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<h1>Sum</h1><p>Adds <b>two</b>  numbers.</p><pre>a\n  + b</pre>", "Sum\n\nAdds two numbers.\n\na\n  + b"),
        ("<p>a<br>b</p>\n<ul><li>x</li> <li>y</li></ul>", "a\nb\n\nx\ny"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        (
            "<head><title>T</title></head><script>f()</script><style>p{}</style><p>1 &lt; 2 &amp; caf&eacute;",
            "1 < 2 & caf\u00e9",
        ),
        ("<!-- note -->plain", "plain"),
        ("", ""),
    ],
)
def test_html_becomes_text(html: str, expected: str) -> None:
    assert html_to_text(html) == expected


def test_deep_html_does_not_end_in_a_recursion_error() -> None:
    assert html_to_text("<i>" * 5000 + "deep") == "deep"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ada.l+x@love-lace.org.", "write to email@example.com."),
        ("from 8.8.8.8, not 127.0.0.1 or 192.168.0.1", "from 192.0.2.1, not 127.0.0.1 or 192.168.0.1"),
        ("at [2a00:1450:4001:81b::200e]:80", "at [2001:db8::1]:80"),
        ("std::vector a::b 12:30:45 fe80::1 1.2.3 300.1.1.1", "std::vector a::b 12:30:45 fe80::1 1.2.3 300.1.1.1"),
        ("a@b user@host", "a@b user@host"),
    ],
)
def test_addresses_are_masked_the_same_way_each_time(text: str, expected: str) -> None:
    assert mask(text) == expected
    assert mask(expected) == expected


def test_languages_are_told_with_a_probability() -> None:
    assert language_of("The cat sleeps on the roof of the house and nobody knows why it does so.")[0] == "en"
    language, score = language_of("Le chat dort sur le toit de la maison et personne ne sait pourquoi.")
    assert language == "fr" and 0.9 < score <= 1
