"""Text in Arrow's buffers as compiled kernels read it: bytes of UTF-8 and where each text begins.

A column of strings is two buffers already, so nothing is copied and no Python string is made:

    ["héé", "a"]  ->  data  h C3 A9 C3 A9 a     offsets  0 5 6

Arrow has checked that the bytes are UTF-8; kernels rely on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.compiled import inline_kernel

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


def text_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """The bytes of all texts end to end, uint8[n], and where each begins and the last one ends, int64[texts + 1].

    Raises:
        ValueError: a text is null.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(_large(column))
    if column.null_count:
        raise ValueError("a text is null")
    if not pa.types.is_string(column.type):
        column = column.cast(pa.large_string())
    _, offsets_buffer, data_buffer = column.buffers()
    if data_buffer is None or not len(column):
        return np.empty(0, np.uint8), np.zeros(len(column) + 1, np.int64)
    kind = np.int32 if pa.types.is_string(column.type) else np.int64  # a cast of strings takes longer than their use
    offsets = np.frombuffer(offsets_buffer, kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _large(column: pa.ChunkedArray) -> list[pa.Array]:
    """Chunks with 64-bit offsets, so that more than 2 GiB can be joined."""
    return [chunk.cast(pa.large_string()) for chunk in column.chunks] or [pa.array([], pa.large_string())]


def text_array(data: Bytes, offsets: Offsets) -> pa.Array:
    """The inverse: an Arrow column of strings over these buffers, checked to be UTF-8."""
    column = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    column.validate(full=True)
    return column


def text_column(texts: Sequence[str]) -> pa.Array:
    """An Arrow column of these texts. `pa.array` gives the same, but imports pandas to see whether it was given a
    table of it, for half a second."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    data = pa.py_buffer(b"".join(encoded))
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), data)


@inline_kernel
def decode(data: Bytes, place: int) -> tuple[np.int32, int]:
    """The code point that begins at `place`, and the number of its bytes."""
    first = np.int32(data[place])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (data[place + 1] & 0x3F), 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (data[place + 1] & 0x3F) << 6 | (data[place + 2] & 0x3F), 3
    return (
        (first & 0x07) << 18
        | (data[place + 1] & 0x3F) << 12
        | (data[place + 2] & 0x3F) << 6
        | (data[place + 3] & 0x3F),
        4,
    )
