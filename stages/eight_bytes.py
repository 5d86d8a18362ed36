"""Eight bytes at a time in compiled kernels: loads and stores at any place, and the first byte of a kind.

Most words have up to eight letters, so one load, a few operations and one store take the place of a loop.
Bytes are in little-endian order: the first is the lowest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from stages.compiled import inline_kernel

ONES, HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.gep_inbounds(builder, data, place), ir.IntType(64).as_pointer())


@intrinsic
def load(context, array, place):  # type: ignore[no-untyped-def]
    """array[place : place + 8] as uint64; nobody checks that the bytes are there."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        return builder.load(_pointer(context, builder, signature.args[0], arguments[0], place), align=1)

    return types.uint64(array, place), generate


@intrinsic
def store(context, array, place, value):  # type: ignore[no-untyped-def]
    """array[place : place + 8] = the bytes of a uint64; nobody checks that there is room."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], arguments[0], place), align=1)
        return context.get_dummy_value()

    return types.void(array, place, types.uint64), generate


@intrinsic
def trailing_zeros(context, value):  # type: ignore[no-untyped-def]
    """The number of zero bits below the lowest one; 64 of 0."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@inline_kernel
def letters_before_stop(packed: np.uint64) -> np.int64:
    """How many of eight bytes come before the first that is 0 or 0x80 and above; 8 if none is."""
    stops = ((packed - ONES) & ~packed | packed) & HIGH_BITS
    return np.int64(trailing_zeros(stops) >> np.uint64(3))  # type: ignore[call-arg]


@inline_kernel
def zeros_before_byte(packed: np.uint64) -> np.int64:
    """How many of eight bytes come before the first that is not 0; 8 if all are."""
    return np.int64(trailing_zeros(packed) >> np.uint64(3))  # type: ignore[call-arg]


@inline_kernel
def first_bytes(packed: np.uint64, count: int) -> np.uint64:
    """The first `count` (0 to 8) bytes, the others 0."""
    low = (np.uint64(1) << (np.uint64(8 * count) & np.uint64(63))) - np.uint64(1)
    return packed if count == 8 else packed & low
