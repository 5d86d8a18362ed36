"""The packages of FlashAttention (Dao et al., 2022 to 2026) behind one pair of functions.

    fa2     flash-attn 2.8 or later     Ampere and everything later; keys and values of one width, up to 256
    fa4     flash-attn-4                Hopper and Blackwell; widths up to 192, values of another than keys

Both give the log-sum-exp of every query and take it back for the gradients, which is what sinks need
(model/sinks.py). A window is causal by having no keys to its right.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """What is asked for, besides tensors. `offsets` and `longest` as in model/flash.py."""

    scale: float
    causal: bool
    window: int
    offsets: Tensor | None
    longest: int

    @property
    def lengths(self) -> tuple[Tensor, Tensor, int, int]:
        assert self.offsets is not None
        return self.offsets, self.offsets, self.longest, self.longest


class Package(NamedTuple):
    """forward(q, k, v, call) gives out and lse; backward(q, k, v, out, dout, lse, dq, dk, dv, call) writes the last."""

    install: str
    is_installed: Callable[[], bool]
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., None]


@functools.cache
def has_flash2() -> bool:
    return importlib.util.find_spec("flash_attn_2_cuda") is not None  # the compiled part, without which nothing runs


@functools.cache
def has_flash4() -> bool:
    # in that order: asking for a part of a package imports the package
    return all(importlib.util.find_spec(name) is not None for name in ("cutlass", "flash_attn", "flash_attn.cute"))


def _flash2(call: Call) -> tuple[Any, ...]:
    """What stands behind the tensors: dropout, scale, causal, window to the left and right, soft-cap, ALiBi."""
    left, right = (call.window - 1, 0) if call.window else (-1, -1)
    return 0.0, call.scale, call.causal and not call.window, left, right, 0.0, None


def flash2_forward(q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    interface = importlib.import_module("flash_attn.flash_attn_interface")
    if call.offsets is None:
        out, lse, *_ = interface._flash_attn_forward(q, k, v, *_flash2(call), False)
    else:
        out, lse, *_ = interface._flash_attn_varlen_forward(q, k, v, *call.lengths, *_flash2(call), False)
    return out, lse


def flash2_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    call: Call,
) -> None:  # fmt: skip
    interface = importlib.import_module("flash_attn.flash_attn_interface")
    tensors = (dout, q, k, v, out, lse.contiguous(), dq, dk, dv)  # it reads lse without strides
    if call.offsets is None:
        interface._flash_attn_backward(*tensors, *_flash2(call), False)
    else:
        interface._flash_attn_varlen_backward(*tensors, *call.lengths, *_flash2(call), False)


def _flash4(call: Call) -> dict[str, Any]:
    return {
        "softmax_scale": call.scale,
        "causal": call.causal and not call.window,
        "window_size_left": call.window - 1 if call.window else None,
        "window_size_right": 0 if call.window else None,
        "cu_seqlens_q": call.offsets,
        "cu_seqlens_k": call.offsets,
        "max_seqlen_q": call.longest or None,
        "max_seqlen_k": call.longest or None,
    }


def flash4_forward(q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    interface = importlib.import_module("flash_attn.cute.interface")
    out, lse, *_ = interface._flash_attn_fwd(q, k, v, return_lse=True, **_flash4(call))
    return out, lse


def flash4_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    call: Call,
) -> None:  # fmt: skip
    interface = importlib.import_module("flash_attn.cute.interface")
    interface._flash_attn_bwd(q, k, v, out, dout, lse, dq=dq, dk=dk, dv=dv, **_flash4(call))


PACKAGES = {
    "fa2": Package("flash-attn (pip install flash-attn, which compiles)", has_flash2, flash2_forward, flash2_backward),
    "fa4": Package("flash-attn-4 (pip install --pre flash-attn-4)", has_flash4, flash4_forward, flash4_backward),
}
