"""x W^T, W in int8 codes, by FBGEMM's integer kernels: on CPUs of x86, a few rows three times as fast as in fp32.

They multiply inputs 0..127 by codes -127..127: the sum of two such products fits into 16 bits, as AVX2 adds them, and
of larger ones would not. So each row is laid over 127 steps between its smallest and its largest value,

    x = lowest + step * t,  t in 0..127        x W^T = step * (t W^T) + lowest * (sum over each row of W)

and t is given in one digit or two, which are two rows of one product:

    1   t = a                      7 bits: inputs as int8, "dynamic"; nothing about them is known beforehand
    2   t = a + b / 127 - 1 / 2    14 bits, where bf16 has 8: as good as inputs in fp32

Example: 0, 3, 10 lie between 0 and 10, so step = 10 / 127 and t = 0, 38.1, 127. One digit takes 38, which stands for
2.992; two take 38 and b = (0.1 + 0.5) * 127 = 76, which stand for 38 + 76 / 127 - 0.5 = 38.098 and 3.0000.

Integers add exactly and every row has its own step: a row gives the same bits alone and in any batch, on any number
of threads. Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

STEPS = 127
SMALLEST = 1e-30  # a step of zero would divide by zero where all inputs are equal
AVAILABLE = "fbgemm" in torch.backends.quantized.supported_engines


class Int8Product:
    """Args: codes: int8 [N, K]. scale: fp32 [N]. digits: 1 or 2."""

    def __init__(self, codes: Tensor, scale: Tensor, digits: int):
        self.digits = digits
        self.sums_N = codes.sum(dim=1, dtype=torch.int64) * scale
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to drop such tensors in a later release than it is pinned to
            torch.backends.quantized.engine = "fbgemm"
            try:
                zeros = torch.zeros(len(scale), dtype=torch.int64)
                weight = torch._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
                self.packed = torch.ops.quantized.linear_prepack(weight, None)
            finally:
                torch.backends.quantized.engine = engine

    def __call__(self, x_RK: Tensor) -> Tensor:
        """[R, N], fp32."""
        lowest_R1, step_R1 = steps_of(x_RK)
        t_RK = (x_RK - lowest_R1).div_(step_R1)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32  # it rounds to whole numbers
        if self.digits == 1:
            y_RN = multiply(t_RK, 1.0, 0, self.packed)
        else:
            first_RK = t_RK.round()
            second_RK = t_RK.sub_(first_RK).add_(0.5).mul_(STEPS)
            first_RN, second_RN = multiply(torch.cat((first_RK, second_RK)), 1.0, 0, self.packed).chunk(2)
            y_RN = first_RN.add_(second_RN, alpha=1 / STEPS)
            lowest_R1 = lowest_R1 - step_R1 / 2
        return torch.addcmul(lowest_R1 * self.sums_N, step_R1, y_RN)


def steps_of(x_RK: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest value of each row, and a 127th of the way to the largest."""
    lowest_R1, highest_R1 = x_RK.aminmax(dim=1, keepdim=True)
    return lowest_R1, (highest_R1 - lowest_R1).div_(STEPS).clamp_(min=SMALLEST)


def in_one_digit(x_RK: Tensor) -> Tensor:
    """The inputs as one digit stands for them, where there are no such kernels."""
    lowest_R1, step_R1 = steps_of(x_RK)
    return ((x_RK - lowest_R1) / step_R1).round() * step_R1 + lowest_R1
