"""One row of inputs times a matrix of int8 codes, y[n] = scale[n] * sum over k of code[n, k] * x[k].

This is what decoding one sequence does, and reading the matrix is what takes the time: a byte a weight instead of four.
The codes become floats in registers and nothing but y is written. `dynamic` first rounds x to 127 steps between its
smallest and its largest value, as model/int8_product.py does with more rows.

Example: codes 1, -2 and a scale of 0.5 times 4, 3 give 0.5 * (4 - 6) = -1.

Sums are added in the order that the processor's vectors suggest: equal bits on equal processors, on one thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stages.compiled import kernel, sum_kernel

STEPS, SMALLEST = np.float32(127), np.float32(1e-30)
Floats = npt.NDArray[np.float32]


def one_row(x_K: torch.Tensor, codes_NK: torch.Tensor, scale_N: torch.Tensor, dynamic: bool) -> torch.Tensor:
    """[N], fp32; all contiguous, on the CPU."""
    y_N = torch.empty(len(codes_NK))
    x = np.empty(len(x_K), np.float32) if dynamic else x_K.numpy()
    if dynamic:
        round_to_steps(x_K.numpy(), x)
    multiply(x, codes_NK.numpy(), scale_N.numpy(), y_N.numpy())
    return y_N


@sum_kernel
def multiply(x: Floats, codes: npt.NDArray[np.int8], scale: Floats, y: Floats) -> None:
    for n in range(codes.shape[0]):
        total = np.float32(0)
        for k in range(codes.shape[1]):
            total += np.float32(codes[n, k]) * x[k]
        y[n] = total * scale[n]


@kernel
def round_to_steps(x: Floats, rounded: Floats) -> None:
    lowest, highest = x[0], x[0]
    for value in x:
        lowest, highest = min(lowest, value), max(highest, value)
    step = max((highest - lowest) / STEPS, SMALLEST)
    for k in range(len(x)):
        rounded[k] = np.float32(np.rint((x[k] - lowest) / step)) * step + lowest
