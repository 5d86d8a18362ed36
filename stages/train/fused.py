"""Products of matrices that do what follows them in the same kernel: `execution.fused_kernels`.

The activation of an MLP reads and writes the widest tensors of a block, and the loss those of the whole model. Done
where a product has just been computed, before it leaves the chip, both are nearly free. The kernels are those of the
package quack-kernels (Tri Dao and others), which comes with flash-attn-4. Two places take them:

    MLP       linear + activation forward, linear + its derivative backward    fused_mlp.py
    loss      head + exponentials, and both products of its gradient            scaled_cross_entropy.py

Measured on an H200 (docs/train.md), they pay for models at least 768 wide, in bf16. Where they cannot be used `auto`
goes on without them, and `true` says why.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch.nn import functional as F

from model.decoder import Decoder
from stages.errors import BadInput
from stages.execution import Execution
from stages.progress import say
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.sharding import is_sharded

NARROWEST = 768  # hidden states; narrower models were not measured
HOPPER = (9, 0)


def wants_fused(model: Decoder, params: TrainParams, execution: Execution, ranks: Ranks, compiled: bool) -> bool:
    """Whether to take fused kernels.

    Raises:
        BadInput: they are asked for where they cannot be.
    """
    if execution.fused_kernels is False:
        return False
    reason = _no_fused_kernels(model, params, execution, ranks)
    if execution.fused_kernels is True:
        if reason := reason or _does_not_work(ranks.device):
            raise BadInput(f"params.yaml: execution.fused_kernels is true, but {reason}; set it to auto")
        return True
    if reason or not compiled or model.config.hidden_size < NARROWEST:
        return False
    if broken := _does_not_work(ranks.device):
        if ranks.first:
            say(f"train: without fused kernels: {broken}")
        return False
    return True


def _no_fused_kernels(model: Decoder, params: TrainParams, execution: Execution, ranks: Ranks) -> str:
    """Why this run cannot have them, or the empty text."""
    if not ranks.device.startswith("cuda"):
        return "they are for GPUs"
    if params.precision not in ("bf16", "fp8"):
        return f"they compute in bf16, not in train.precision {params.precision}"
    if is_sharded(execution, ranks):
        return "they have not been tried on parameters in parts (execution.sharding full)"
    if torch.cuda.get_device_capability(ranks.device) != HOPPER:
        return f"they are for Hopper, and this is {torch.cuda.get_device_name(ranks.device)}"
    if importlib.util.find_spec("quack") is None:
        return "the package quack-kernels, which comes with flash-attn-4, is not installed"
    return ""


@functools.cache
def _does_not_work(device: str) -> str:
    """What a small product says against the installed versions, or the empty text. quack and the compiler that it
    comes with change quickly, and not every pair of them goes together."""
    try:
        from quack.gemm_interface import gemm_act

        x, weight = (torch.randn(256, 256, device=device, dtype=torch.bfloat16) for _ in range(2))
        _, found = gemm_act(x, weight.t(), activation="gelu_tanh_approx", tuned=False)
        expected = F.gelu(x.float() @ weight.float().t(), approximate="tanh")
        difference = float((found.float() - expected).norm() / expected.norm())
    except Exception as error:  # whatever a compiler raises
        return f"quack-kernels does not work here: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "" if difference < 0.01 else f"quack-kernels computes wrongly here (differs by {difference:.3g})"
