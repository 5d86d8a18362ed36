"""The table of characters is the one that Hugging Face tokenizers uses; buffers round-trip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from stages import unicode
from stages.compiled import kernel
from stages.utf8 import decode, text_array, text_buffers

SURROGATES = range(0xD800, 0xE000)
ASSIGNED = [point for point in range(0x40000) if point not in SURROGATES] + list(range(0xE0000, 0xE01F0))


def test_the_file_is_the_one_that_the_fingerprint_names() -> None:
    data = Path(unicode.__file__).with_name("unicode.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == unicode.UNICODE_SHA256


@pytest.mark.parametrize(
    ("pattern", "flag"), [(r"\p{L}", unicode.LETTER), (r"\p{N}", unicode.NUMBER), (r"\s", unicode.SPACE)]
)
def test_classes_are_those_of_tokenizers(pattern: str, flag: int) -> None:
    split = pre_tokenizers.Split(Regex(pattern + "+"), behavior="removed", invert=True)
    found = np.zeros(len(ASSIGNED), bool)
    for _, (first, last) in split.pre_tokenize_str("".join(map(chr, ASSIGNED))):
        found[first:last] = True
    classes, _ = unicode.tables()
    assert np.array_equal(classes[ASSIGNED] & flag != 0, found)


def test_lower_case_is_that_of_tokenizers() -> None:
    _, lower = unicode.tables()
    normalise = normalizers.Lowercase().normalize_str
    changed = [point for point in ASSIGNED if lower[point] != point]
    assert "".join(map(chr, lower[changed])) == "".join(normalise(chr(point))[0] for point in changed)
    unchanged = "".join(chr(point) for point in ASSIGNED if lower[point] == point)
    assert normalise(unchanged) == unchanged


@kernel
def code_points(data: np.ndarray) -> list[int]:
    found, place = [], 0
    while place < len(data):
        point, width = decode(data, place)
        found.append(point)
        place += width
    return found


@given(st.lists(st.text()))
def test_text_round_trips_through_buffers(texts: list[str]) -> None:
    data, offsets = text_buffers(pa.chunked_array([texts[:1], texts[1:]], pa.string()))
    assert text_array(data, offsets).to_pylist() == texts
    if len(data):
        assert "".join(map(chr, code_points(data))) == "".join(texts)


def test_a_slice_gives_its_own_texts() -> None:
    data, offsets = text_buffers(pa.array(["ab", "cd", "e", "f"])[1:3])
    assert data.tobytes() == b"cde"
    assert offsets.tolist() == [0, 2, 3]


def test_null_is_no_text() -> None:
    with pytest.raises(ValueError, match="null"):
        text_buffers(pa.array(["a", None]))
