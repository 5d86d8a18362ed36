"""Bytes as text: strict UTF-8 without NUL, and what to do about bytes that are something else.

    inputs/a.txt: byte 1402 (0xe9) is not UTF-8; convert the file, e.g. iconv -f latin1 -t utf-8
    inputs/b.txt: byte 0 and on is UTF-16, not UTF-8; convert the file: iconv -f utf-16 -t utf-8

Files of Windows are often UTF-16: two bytes a character, of which one is NUL wherever the text is English.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from stages.errors import BadInput

LOOKED_AT = 1024  # bytes of a text, of which every second one is NUL in UTF-16
LEAST = 4
SHARE = 0.5  # of the characters, at least, are ASCII or Latin-1: the one byte is NUL
FEW = 0.1  # of them, at most, have a NUL as the other byte


def decode(path: Path, data: bytes, offset: int = 0, place: str = "") -> str:
    """The text of `data`.

    Args:
        offset: where `data` starts in the (decompressed) file.
        place: as `row 3: `.

    Raises:
        BadInput: it is no UTF-8, or has a NUL.
    """
    if encoding := utf16_of(data, offset):
        raise BadInput(
            f"{path}: {place}byte {offset} and on is {encoding.upper()}, not UTF-8; convert the file: "
            f"iconv -f {encoding} -t utf-8"
        )
    if (nul := data.find(b"\0")) >= 0:
        raise BadInput(f"{path}: {place}byte {offset + nul} is NUL; this is not a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: {place}byte {offset + error.start} (0x{data[error.start]:02x}) is not UTF-8; "
            "convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None


def utf16_of(data: bytes, offset: int = 0) -> str:
    """The name by which `iconv` knows the UTF-16 of a file from its byte `offset` on; empty where it is none."""
    if not offset and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[:LOOKED_AT]
    if len(head) < LEAST or b"\0" not in head:
        return ""
    halves = [head[(place - offset) % 2 :: 2] for place in (0, 1)]  # bytes at even and at odd places of the file
    shares = [half.count(0) / len(half) for half in halves]
    if max(shares) < SHARE or min(shares) > FEW:
        return ""
    return "utf-16be" if shares[0] > shares[1] else "utf-16le"
