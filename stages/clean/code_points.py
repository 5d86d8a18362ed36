"""A text as the kernels of clean see it: its code points, and flags of each (english.py says which).

    "Hé."  ->  codes 72 233 46    flags LETTER | .., LETTER | .., SUFFIX | ..

Words, lines and n-grams are places in these arrays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import bare_kernel, inline_kernel
from stages.utf8 import Bytes, Offsets, decode

Codes = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint16]
Places = npt.NDArray[np.int32]
STOP, HYPHEN, PLUS, DOLLAR, APOSTROPHE, COMMA, AT, COLON, SLASH, UNDERSCORE = (ord(c) for c in ".-+$',@:/_")
LARGE_A, LARGE_C, LARGE_S, LARGE_U, SMALL_S = (ord(c) for c in "ACSUs")
ELLIPSIS, DEGREE, CURLY_APOSTROPHE, EM_DASH, EN_DASH, TILDE = 0x2026, 0xB0, 0x2019, 0x2014, 0x2013, 0x7E


@bare_kernel
def read_texts(data: Bytes, offsets: Offsets, classes: Flags, codes: Codes, flags: Flags, places: Offsets) -> None:
    """Writes the code points of all texts, the flags of each, and where each text begins among them."""
    count = 0
    for text in range(len(offsets) - 1):
        places[text] = count
        place = offsets[text]
        while place < offsets[text + 1]:
            code, size = decode(data, place)
            codes[count], flags[count] = code, classes[code]
            count += 1
            place += size
    places[len(offsets) - 1] = count


@inline_kernel
def is_digit(code: int) -> bool:
    return 48 <= code <= 57
