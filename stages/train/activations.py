"""Activation checkpointing (Chen et al., 2016): what a block keeps for its backward pass, and what it computes again.

    none        everything that is needed
    full        the input of each block: least memory, a third more work
    every_N     the same in every N-th block alone
    selective   results of matrix products and attention; norms, rotations and activations are computed again,
                which costs little (Korthikanti et al., 2022)

Losses and gradients are the same in all four, with dropout too: the second pass draws what the first drew.

A compiled block knows by itself what it need not keep, and computes no more again than it must. But what our own
functions keep (8-bit layers, fused MLPs) torch 2.11 kept all the same: base in fp8 took 38 GiB with `full` and 40
without. So blocks with such functions are compiled inside, and computed again from outside, as a whole.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.decoder import Block, Decoder
from model.experts import Experts
from model.flash import OPERATOR
from stages.train.feasible import has_own_parts

ATEN = torch.ops.aten
PRODUCTS = (
    ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN._scaled_mm.default, ATEN._grouped_mm.default,
    ATEN._scaled_dot_product_cudnn_attention.default, ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default, ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
)  # fmt: skip
OWN_PRODUCTS = (OPERATOR, "torch_attn::")  # operators of FlashAttention's packages and of varlen_attn


def checkpoint_activations(model: Decoder, kind: str, compiled: bool, own_functions: bool = False) -> None:
    """Has the blocks keep what `kind` says. To be called before they are compiled.

    Args:
        own_functions: blocks compute with functions that say themselves what they keep.
    """
    if kind == "none":
        return
    every = int(kind.removeprefix("every_")) if kind.startswith("every_") else 1
    for number, block in enumerate(model.blocks):
        if number % every == 0:
            assert isinstance(block, Block)
            own = has_own_parts(model.config)
            outside = compiled and own_functions and kind != "selective"
            block.forward = _checkpointed(block, kind == "selective", compiled, own, outside)  # type: ignore[method-assign]


def is_compiled_inside(block: nn.Module) -> bool:
    """Whether the block is computed again from outside of its compiled code: it is not to be compiled as a whole."""
    return getattr(block.forward, "compiled_inside", False)


def _checkpointed(block: Block, selective: bool, compiled: bool, own: bool, outside: bool) -> Any:
    forward = torch.compile(block.forward, dynamic=False) if outside else block.forward
    # A CUDA graph, which is of compiled blocks without dropout, cannot be asked for the state of random numbers.
    draws = not compiled or own or bool(block.dropout.p)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    if block.has_experts and (not compiled or outside):
        # Else a compiled block counts once: what it changes is no part of what it keeps.
        options["context_fn"] = functools.partial(_counting_once, block, options.get("context_fn"))

    @functools.wraps(block.forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and block.training):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    checkpointed.compiled_inside = outside  # type: ignore[attr-defined]
    return checkpointed


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operator in PRODUCTS or str(operator).replace(".", "::").startswith(OWN_PRODUCTS)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _counting_once(block: nn.Module, contexts: Any) -> tuple[Any, Any]:
    first, second = contexts() if contexts else (contextlib.nullcontext(), contextlib.nullcontext())
    return first, _uncounted(block, second)


@contextlib.contextmanager
def _uncounted(block: nn.Module, context: Any) -> Iterator[None]:
    """Experts count a choice once, not again when it is made again."""
    experts = [module for module in block.modules() if isinstance(module, Experts)]
    kept = [module.counts.clone() for module in experts]
    try:  # left by an exception, once all that is needed has been computed again
        with context:
            yield
    finally:
        for module, counts in zip(experts, kept, strict=True):
            module.counts.copy_(counts)
