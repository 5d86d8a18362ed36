"""decoding: bytes that are no UTF-8 are named, and those of Windows are told from those of Latin-1 and of no text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.decoding import decode, utf16_of
from stages.errors import BadInput
from stages.sources import SourceFile, check_file

TEXT = "Most of a text in English, with a few others: é, 漢字, 😀.\n" * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be"])
@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_a_file_of_utf_16_is_named_as_one_with_the_command_that_converts_it(
    tmp_path: Path, encoding: str, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(TEXT.encode(encoding))
    first = check_file(SourceFile(path, path.name), "text").problems[0]
    assert re.fullmatch(
        rf"{path}: (row 1: |line 1: )?byte 0 and on is {encoding.upper()}, not UTF-8; convert the file: "
        rf"iconv -f {encoding} -t utf-8",
        first,
    )
    assert path.read_bytes().decode(encoding) == TEXT, "the name is one that Python and iconv know"


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_lines_of_such_a_file_begin_at_odd_bytes_too(encoding: str) -> None:
    data = TEXT.encode(encoding)
    assert {utf16_of(data[begin:], begin) for begin in range(1, 9)} == {encoding}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9", "byte 3 (0xe9) is not UTF-8; convert the file, e.g. iconv -f latin1"),
        (b"a\0b", "byte 1 is NUL; this is not a text file"),
        (bytes(2000), "byte 0 is NUL; this is not a text file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0", "byte 8 is NUL; this is not a text file"),
    ],
)
def test_other_bytes_are_named_as_what_they_are(data: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"a.txt: {said}")):
        decode(Path("a.txt"), data)
    assert decode(Path("a.txt"), TEXT.encode()) == TEXT
