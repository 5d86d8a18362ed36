"""Normalises text without touching what it says: characters, line ends, white space.

    "Caf" "e" U+0301 "\r\n\tif x:  \r\n" NUL   ->   "Café\n\tif x:"

In this order: every kind of line end becomes \n; control characters, byte order marks and soft
hyphens go, other spaces become a plain space; Unicode NFC; trailing spaces go from every line, and
three or more empty lines become two. Indentation and paragraphs stay, since they are what code and
prose are made of. Doing it twice changes nothing more.
"""

from __future__ import annotations

import re
import unicodedata

LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
EMPTY_LINES = re.compile(r"\n{4,}")
BYTE_ORDER_MARK, SOFT_HYPHEN = 0xFEFF, 0xAD
# UTF-8 read as Windows-1252: a byte that leads a character, then as many as follow it, as they look there.
FOLLOWING = "[\x80-\xbf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c"
FOLLOWING += "\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
MOJIBAKE = re.compile(f"[\xc2-\xdf]{FOLLOWING}|[\xe0-\xef]{FOLLOWING}{{2}}|[\xf0-\xf4]{FOLLOWING}{{3}}")
# The same in UTF-8, roughly: a search for one byte, many times faster, says no to most texts.
LEADS = re.compile(b"\xc3[\x82-\xb4][\xc2\xc5\xc6\xcb\xe2]")
LAST_SPACE = 0x3000  # no control character or space of Unicode stands above it


def _character_map() -> dict[int, str]:
    """What `str.translate` does to control characters and to spaces other than the plain one."""
    mapped = {BYTE_ORDER_MARK: "", SOFT_HYPHEN: ""}
    for code in range(LAST_SPACE + 1):
        category = unicodedata.category(chr(code))
        if category == "Cc" and chr(code) not in "\n\t":
            mapped[code] = ""
        elif category == "Zs" and chr(code) != " ":
            mapped[code] = " "
    return mapped


CHARACTERS = _character_map()
ASCII = (
    bytes.maketrans(b"\r\x0b\x0c", b"\n\n\n"),
    bytes(code for code in CHARACTERS if code < 128 and chr(code) not in "\r\x0b\x0c"),
)
UNWANTED = re.compile("[" + "".join(re.escape(chr(code)) for code in sorted(CHARACTERS)) + "]")


def normalise(text: str) -> str:
    """The text in the form above; empty if nothing but space was in it."""
    if text.isascii():
        text = text.replace("\r\n", "\n").encode().translate(*ASCII).decode()
    else:
        text = LINE_END.sub("\n", text)
        if UNWANTED.search(text):
            text = text.translate(CHARACTERS)
        text = unicodedata.normalize("NFC", text)
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        text = "\n".join(map(str.rstrip, text.split("\n")))
    if "\n\n\n\n" in text:
        text = EMPTY_LINES.sub("\n\n\n", text)
    return text.strip("\n")


def repair(text: str) -> str:
    """The text with characters that were decoded wrongly put right, where it looks as if there were any.

    ftfy costs a hundred times what the rest does, so it sees only texts in which UTF-8 read as Windows-1252 is
    found: "Ã©" for "é", "â€™" for an apostrophe.
    """
    if text.isascii() or not LEADS.search(text.encode("utf-8", "surrogatepass")) or not MOJIBAKE.search(text):
        return text
    import ftfy

    return ftfy.fix_encoding(text)
