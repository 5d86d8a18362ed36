"""What each character is, as `tokenizers` sees it: one table of flags, one of lower-case letters.

Python's own tables change with its version, so text would be other words and other tokens on 3.11 and
3.13. unicode.txt holds Unicode 16 as the regular expressions of Hugging Face tokenizers know it (a test
holds it against the installed version), one range of characters a line:

    0041 005A Lu        A to Z are upper-case letters (general category)
    4E00 9FFF lone      these scripts write no space between words
    0041 005A +32       their lower-case letters stand 32 further

Compiled kernels take the tables as arguments. `classes[ord("7")] & NUMBER` is not 0.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

# unicode.txt; part of the code's fingerprint, because a change of the file changes tokens and duplicates.
UNICODE_SHA256 = "9b975eedb7a21fc7bee46e83dbfb36a8d3ee7d5a22fbd92e49888773ed3517ad"
N_CODE_POINTS = 0x110000

LETTER, MARK, NUMBER, SPACE, PUNCTUATION, SYMBOL, UPPER, LONE = (1 << bit for bit in range(8))
FLAGS = {"L": LETTER, "M": MARK, "N": NUMBER, "Z": SPACE, "P": PUNCTUATION, "S": SYMBOL}
SPACES_OF_CONTROL = (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85)

Classes = npt.NDArray[np.uint8]
LowerCase = npt.NDArray[np.int32]


@functools.lru_cache(maxsize=1)
def tables() -> tuple[Classes, LowerCase]:
    """The flags of every code point, uint8[0x110000], and its lower-case letter, int32[0x110000]."""
    classes = np.zeros(N_CODE_POINTS, np.uint8)
    lower = np.arange(N_CODE_POINTS, dtype=np.int32)
    for line in Path(__file__).with_name("unicode.txt").read_text(encoding="ascii").splitlines():
        first, last, what = line.split()
        characters = slice(int(first, 16), int(last, 16) + 1)
        if what == "lone":
            classes[characters] |= LONE
        elif what[0] in "+-":
            lower[characters] += int(what)
        else:
            classes[characters] |= FLAGS.get(what[0], 0) | (UPPER if what == "Lu" else 0)
    classes[list(SPACES_OF_CONTROL)] |= SPACE
    return classes, lower
