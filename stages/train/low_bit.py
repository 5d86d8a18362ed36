"""AdamW and Lion whose states take one byte a number, in blocks of 256 with a scale each.

    dynamic8   256 values from 1e-7 to 1, denser towards 0 (Dettmers et al., 2022)
    float8     E4M3: three bits of mantissa, from 2^-9 to 448

A state is rounded up or down by chance, with the probabilities that keep its mean. Rounded to the nearest, a mean
that falls by 0.1% a step would stay where it is for ever, since neighbouring codes lie 6 to 12% apart: such a
state never forgets. Of the second moment the root is kept, which halves the range that a block must span.

The chance is a hash of the step and of the place of the number, so a resumed run draws what the uninterrupted one
drew. Example: 0.3 lies between the codes 0.28125 and 0.3125 of float8 and becomes the upper one in 3 of 5 draws.

States are plain tensors (codes uint8 or float8, scales fp32), as safetensors holds them. Parameters of fewer than
4,096 numbers, and those that 256 does not divide, keep fp32 states: they are gains and biases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
SMALLEST = 4096
MANTISSA_BITS, LEAST_EXPONENT = 3, -6  # of E4M3
FLOAT8 = torch.float8_e4m3fn


def is_coded(parameter: Tensor) -> bool:
    """Whether its states are held in 8 bits."""
    return parameter.numel() >= SMALLEST and parameter.numel() % BLOCK == 0


@functools.cache
def dynamic_codes(device: torch.device) -> Tensor:
    """The 256 values of dynamic8, ascending from -1 to 1: 0, and seven decades of evenly spaced numbers."""
    positive = []
    for decade in range(7):  # from 1e-6 up; each has twice the numbers of the one below
        ends = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float64)
        positive.append((ends[:-1] + ends[1:]) / 2 * 10.0 ** (decade - 6))
    values = torch.cat([*positive, torch.ones(1, dtype=torch.float64)])
    negative = -values[1:].flip(0)
    return torch.cat([negative, torch.zeros(1, dtype=torch.float64), values]).float().to(device)


def chance(step: Tensor, size: torch.Size, salt: int, device: torch.device) -> Tensor:
    """Evenly spread numbers in [0, 1) for [blocks, 256], by a hash of step and place (Wellons' lowbias32)."""
    place = torch.arange(size[0] * size[1], device=device, dtype=torch.int64).view(size)
    x = (place * 2654435761 + step.to(torch.int64) * 40503 * 65599 + salt) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).to(torch.float32) * (1 - 2**-24) / 2**32


def scaled(x_KB: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Blocks scaled so that their largest number is `largest`, and the factors that undo it, [K, 1]."""
    factor = (x_KB.abs().amax(dim=1, keepdim=True) / largest).clamp(min=1e-30)
    return x_KB / factor, factor


def encode_float8(x_KB: Tensor, draw_KB: Tensor) -> tuple[Tensor, Tensor]:
    x, factor = scaled(x_KB, 448.0)
    exponent = ((x.view(torch.int32) >> 23) & 0xFF) - 127
    spacing = ((exponent.clamp(min=LEAST_EXPONENT) - MANTISSA_BITS + 127) << 23).view(torch.float32)
    rounded = torch.floor(x / spacing + draw_KB) * spacing
    return rounded.clamp(-448, 448).to(FLOAT8), factor


def encode_dynamic8(x_KB: Tensor, draw_KB: Tensor) -> tuple[Tensor, Tensor]:
    x, factor = scaled(x_KB, 1.0)
    codes = dynamic_codes(x.device)
    low = (torch.bucketize(x, codes, right=True) - 1).clamp(0, len(codes) - 2)
    below, above = codes[low], codes[low + 1]
    return (low + (draw_KB < (x - below) / (above - below))).to(torch.uint8), factor


def decode(codes_KB: Tensor, factor_K1: Tensor) -> Tensor:
    values = dynamic_codes(codes_KB.device)[codes_KB.long()] if codes_KB.dtype == torch.uint8 else codes_KB.float()
    return values * factor_K1


ENCODERS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "dynamic8": encode_dynamic8,
    "float8": encode_float8,
}


class LowBit(torch.optim.Optimizer):
    """AdamW or Lion over coded states.

    Args:
        rule: adamw or lion. coding: dynamic8 or float8. compiled: whether one kernel does a parameter's step.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], rule: str, coding: str, compiled: bool, lr: float,
        betas: tuple[float, float], eps: float = 1e-8,
    ):  # fmt: skip
        super().__init__(list(groups), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.names = ("mean", "root") if rule == "adamw" else ("mean",)
        self.coding = coding
        move = functools.partial(_move, rule=rule, coding=coding)
        self.move = torch.compile(move, dynamic=True) if compiled else move

    found_inf: Tensor | None = None  # a 1 leaves everything as it is, as with torch's fused optimizers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter] or self.new_state(parameter)
                device = parameter.device
                keep = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
                state["step"] += 1 - keep
                numbers = [group["lr"], group["weight_decay"], *group["betas"], group["eps"]]
                self.move(parameter, parameter.grad, state, keep, torch.tensor(numbers).to(device, non_blocking=True))

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        for name in self.names:
            if not is_coded(parameter):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
                continue
            zeros = torch.zeros(parameter.numel() // BLOCK, BLOCK, device=parameter.device)
            state[f"{name}_codes"], state[f"{name}_scales"] = ENCODERS[self.coding](zeros, zeros)
        return state


def _move(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], keep: Tensor, numbers: Tensor, rule: str, coding: str
) -> None:
    """One step of one parameter, in place; nothing moves where `keep` is 1."""
    lr, weight_decay, beta1, beta2, eps = numbers.unbind()
    coded = "mean_codes" in state
    g = gradient.float().reshape(-1, BLOCK) if coded else gradient.float()

    def held(name: str) -> Tensor:
        return decode(state[f"{name}_codes"], state[f"{name}_scales"]) if coded else state[name]

    def hold(name: str, value: Tensor, salt: int) -> None:
        if not coded:
            state[name].copy_(torch.where(keep > 0, state[name], value))
            return
        codes, scales = ENCODERS[coding](value, chance(state["step"], value.shape, salt, value.device))
        old = state[f"{name}_codes"]
        kept = torch.where(keep > 0, old.view(torch.uint8), codes.view(torch.uint8)).view(old.dtype)
        old.copy_(kept)
        state[f"{name}_scales"].copy_(torch.where(keep > 0, state[f"{name}_scales"], scales))

    mean = held("mean")
    if rule == "lion":
        direction = torch.sign(mean + (1 - beta1) * (g - mean))
        hold("mean", mean + (1 - beta2) * (g - mean), 1)
    else:
        step = state["step"]
        mean = mean + (1 - beta1) * (g - mean)
        square = beta2 * held("root").square() + (1 - beta2) * g.square()
        direction = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)
        hold("mean", mean, 1)
        hold("root", square.sqrt(), 2)
    moved = parameter * (1 - lr * weight_decay) - lr * direction.view_as(parameter)
    parameter.copy_(torch.where(keep > 0, parameter, moved))
