"""One attention, several ways to compute it. All of them mean the same by a mask (model/context.py).

    sdpa     torch's scaled_dot_product_attention, with a dense mask where one is needed; on CPUs too, and
             the oracle of the others. Without a mask it takes cuDNN on Hopper.
    flex     FlexAttention in Triton: blocks of 128 x 128, skipping those that nothing sees
    varlen   torch's varlen_attn (FlashAttention 2): documents and windows, no sinks
    fa2      the package flash-attn: documents and windows; sinks by kernels of ours (model/sinks.py)
    fa4      the package flash-attn-4: the same, on Hopper and Blackwell

Each says what it cannot do (`unfit`), makes its form of a mask once per forward pass (`form`), and
attends. `choose` takes the first that fits in the order of `preference`, which follows what was measured
on one H200 (docs/model.md); a backend asked for by name fits or is refused.

Shapes: B rows, T queries, S keys, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from model.context import Mask, Places, Reach, visible
from model.flash import attend_flash, attend_varlen, document_bounds
from model.flash_packages import PACKAGES
from model.flex import attend_flex, block_mask

NAMES = ("sdpa", "flex", "varlen", "fa2", "fa4")
HALF = (torch.bfloat16, torch.float16)
AMPERE, HOPPER, BLACKWELL = 8, 9, 10  # compute capability, its first number


@dataclasses.dataclass(frozen=True)
class Case:
    """What the choice depends on.

    Attributes:
        device: cpu or cuda. dtype: of queries, keys and values.
        key_width, value_width: of a head. packed: rows hold several documents.
        length: tokens in a row. generation: the first number of the GPU's compute capability, 0 on CPUs.
    """

    device: str
    dtype: torch.dtype
    n_heads: int
    n_kv_heads: int
    key_width: int
    value_width: int
    length: int
    reach: Reach
    packed: bool
    causal: bool
    generation: int


def unfit(name: str, case: Case) -> str:
    """Why a backend cannot do it, or the empty text."""
    if name == "sdpa":
        return ""
    if case.device != "cuda":
        return f"{name} runs on GPUs only"
    if name == "flex":
        if case.length < 16:
            return "flex needs rows of at least 16 tokens"
        narrow = min(case.key_width, case.value_width)
        return "" if narrow >= 16 else f"flex needs heads of at least 16, not {narrow}; set model.head_dim"
    if case.dtype not in HALF:
        return f"{name} computes in bf16 or fp16, not in {str(case.dtype).removeprefix('torch.')}; set train.precision"
    if not case.causal and case.reach.window:
        return f"{name} has no window that looks both ways"
    return _varlen_unfit(case) if name == "varlen" else _package_unfit(name, case)


def _varlen_unfit(case: Case) -> str:
    if case.reach.window and case.reach.sinks:
        return "varlen has windows but no sinks; set model.sink_tokens to 0, or use flex"
    if case.n_heads != case.n_kv_heads:
        return "varlen has no grouped keys in torch 2.11; set model.n_kv_heads to model.n_heads, or use flex"
    if case.key_width != case.value_width or case.key_width > 256:
        return f"varlen needs keys and values of one width up to 256, not {case.key_width} and {case.value_width}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "varlen is not part of this torch"
    return ""


def _package_unfit(name: str, case: Case) -> str:
    package, widths = PACKAGES[name], (case.key_width, case.value_width)
    if not package.is_installed():
        return f"{name} needs the package {package.install}"
    if name == "fa2":
        if case.generation < AMPERE:
            return "fa2 runs on Ampere and later GPUs only"
        if widths[0] != widths[1] or widths[0] % 8 or widths[0] > 256:
            return f"fa2 needs keys and values of one width that 8 divides, up to 256, not {widths[0]} and {widths[1]}"
        return ""
    if case.generation not in (HOPPER, BLACKWELL):
        return "fa4 runs on Hopper and Blackwell GPUs only"
    if any(width % 8 for width in widths) or max(widths) > 192:
        return f"fa4 needs widths that 8 divides, up to 192, not {widths[0]} and {widths[1]}"
    return ""


def preference(case: Case) -> tuple[str, ...]:
    """Backends from the fastest on."""
    if case.device != "cuda":
        return ("sdpa",)
    if case.dtype not in HALF:
        return ("sdpa", "flex") if case.length <= 1024 or not (case.packed or case.reach.window) else ("flex", "sdpa")
    if not case.packed and not case.reach.window:
        return ("fa4", "sdpa")
    # docs/model.md has the times; varlen with sinks is refused by `unfit`
    if not case.reach.window and case.key_width > 64 and case.length > 4096:
        return ("fa4", "flex", "sdpa")
    packed_short = not case.reach.window and case.key_width <= 64 and case.length <= 4096
    wide_window = case.reach.window and case.key_width > 64
    return ("fa4", "fa2", "varlen", "flex", "sdpa") if packed_short or wide_window else ("fa4", "fa2", "flex", "sdpa")


def choose(case: Case, wanted: str = "auto") -> str:
    """The backend for a case.

    Raises:
        ValueError: the one asked for cannot do it, why, and the mend.
    """
    if wanted != "auto":
        if wanted not in NAMES:
            raise ValueError(f"attention_backend {wanted!r} is unknown; there are auto, {', '.join(NAMES)}")
        if reason := unfit(wanted, case):
            mend = "" if "; " in reason else "; set it to auto"
            raise ValueError(f"attention_backend {wanted}: {reason}{mend}")
        return wanted
    return next(name for name in preference(case) if not unfit(name, case))


def make_mask(backend: str, places: Places, reach: Reach, causal: bool, n_documents: int | None = None) -> Mask:
    """The mask of a forward pass without a cache, in the form of the backend. `n_documents` of all rows, if known."""
    if backend == "sdpa":
        plain = places.segments is None and not reach.window
        form: object = None if plain else visible(places, places, reach, causal)
    elif backend == "flex":
        form = block_mask(places, reach, causal)
    else:
        form = document_bounds(places, reach, n_documents, as_rows=backend != "varlen")
    return Mask(backend, reach, causal, form)


def attend(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Mask, scale: float) -> Tensor:
    """softmax(q k^T * scale, where visible) v, [B, H, T, width of v]. The form of a `watched` mask does it itself:
    so analysis sees the very queries and keys of a forward pass (stages/watching.py)."""
    if mask.backend == "watched":
        assert callable(mask.form)
        return mask.form(q_BHTD, k_BKSD, v_BKSD, scale)
    if mask.backend == "sdpa":
        dense = mask.form
        assert dense is None or isinstance(dense, Tensor)
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=dense, is_causal=mask.causal and dense is None, scale=scale,
            enable_gqa=q_BHTD.shape[1] != k_BKSD.shape[1],
        )  # fmt: skip
    if mask.backend == "flex":
        return attend_flex(q_BHTD, k_BKSD, v_BKSD, mask, scale)
    if mask.backend == "varlen":
        return attend_varlen(q_BHTD, k_BKSD, v_BKSD, mask, scale)
    return attend_flash(q_BHTD, k_BKSD, v_BKSD, mask, scale)
