"""Eight bytes at a time in compiled kernels: loads and stores at any place, and which of 64 bytes are set.

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


@intrinsic
def count_ones(context, value):  # type: ignore[no-untyped-def]
    """The number of one bits."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def _block(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    """array[place : place + 64] as a vector."""
    kind = ir.VectorType(ir.IntType(8), 64)
    pointer = builder.bitcast(_pointer(context, builder, array_type, array, place), kind.as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def bytes_set(context, array, place):  # type: ignore[no-untyped-def]
    """64 bits: bit i says that array[place + i] is not 0; nobody checks that the bytes are there."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        block = _block(context, builder, signature.args[0], arguments[0], place)
        is_set = builder.icmp_unsigned("!=", block, ir.Constant(block.type, [0] * 64))
        return builder.bitcast(is_set, ir.IntType(64))

    return types.uint64(array, place), generate


@intrinsic
def bytes_high(context, array, place):  # type: ignore[no-untyped-def]
    """64 bits: bit i says that array[place + i] is 0x80 or more, not ASCII; nobody checks that it is there."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        block = _block(context, builder, signature.args[0], arguments[0], place)
        is_high = builder.icmp_signed("<", block, ir.Constant(block.type, [0] * 64))
        return builder.bitcast(is_high, ir.IntType(64))

    return types.uint64(array, place), generate


@inline_kernel
def first_bytes(packed: np.uint64, count: int) -> np.uint64:
    """The first `count` (0 to 8) bytes, the others 0."""
    low = (np.uint64(1) << (np.uint64(8 * count) & np.uint64(63))) - np.uint64(1)
    return packed if count == 8 else packed & low
