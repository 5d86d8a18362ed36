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
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.decoder import Decoder
from model.mlp import ACTIVATIONS, GATES
from stages.errors import BadInput
from stages.execution import Execution
from stages.progress import say
from stages.train.fused_mlp import GATED, PLAIN, fuse_mlps
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.scaled_cross_entropy import scaled_cross_entropy
from stages.train.sharding import is_sharded

NARROWEST = 768  # hidden states; narrower models were not measured
HOPPER = (9, 0)
MLPS = [name for name, function in {**ACTIVATIONS, **GATES}.items() if function in {**PLAIN, **GATED}]


def wants_fused(model: Decoder, params: TrainParams, execution: Execution, ranks: Ranks, compiled: bool) -> bool:
    """Whether to take fused kernels.

    Raises:
        BadInput: they are asked for where they cannot be.
    """
    if execution.fused_kernels is False:
        return False
    reason = _no_fused_kernels(model, params, execution, ranks)
    if execution.fused_kernels is True:
        if reason := reason or _does_not_work(ranks.device, model.config.mlp):
            raise BadInput(f"params.yaml: execution.fused_kernels is true, but {reason}; set it to auto")
        return True
    if reason or not compiled or model.config.hidden_size < NARROWEST:
        return False
    if broken := _does_not_work(ranks.device, model.config.mlp):
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


def tell_fused(mlps: int, loss: bool, execution: Execution, ranks: Ranks) -> None:
    """Says what takes fused kernels.

    Raises:
        BadInput: they are asked for, and nothing of this run does.
    """
    what = [*([f"{mlps} MLPs"] * bool(mlps)), *(["the loss"] * loss)]
    if not what and execution.fused_kernels is True:
        raise BadInput(
            "params.yaml: execution.fused_kernels is true, but neither the MLPs nor the loss of this run have any "
            "(docs/train.md, Products and what follows them); set it to auto"
        )
    if what and ranks.first:
        say(f"train: fused kernels for {' and '.join(what)}")


@functools.cache
def _does_not_work(device: str, mlp: str) -> str:
    """What a small pass through the kernels that this model would take says against the installed versions, or the
    empty text. quack and the compiler that it comes with change quickly, and not every pair goes together."""
    try:
        apart = max([*_mlp_apart(device, mlp), *_loss_apart(device)])
    except Exception as error:  # whatever a compiler raises
        return f"quack-kernels does not work here: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "" if apart < 0.02 else f"quack-kernels computes wrongly here (differs by {apart:.3g})"


def _mlp_apart(device: str, mlp: str) -> list[float]:
    """How far output and gradient of a small fused MLP lie from those of the plain one, relative."""
    config = ModelConfig(hidden_size=256, intermediate_size=512, n_layers=1, n_heads=2, mlp=mlp)
    if mlp not in MLPS:
        return []
    generator = torch.Generator().manual_seed(0)
    plain, fused = Decoder(config, 256, 16), Decoder(config, 256, 16)
    plain.initialise(generator)
    fused.load_state_dict(plain.state_dict())
    plain, fused = plain.to(device), fused.to(device)
    fuse_mlps(fused)
    x = torch.randn(256, 256, generator=generator).to(device, torch.bfloat16)
    found = []
    for model in (plain, fused):
        block_mlp, leaf = cast(nn.Module, model.blocks[0].mlp), x.clone().requires_grad_()
        for parameter in block_mlp.parameters():  # outputs that are not zero
            parameter.data.normal_(std=0.1, generator=torch.Generator(device).manual_seed(1))
        with torch.enable_grad(), torch.autocast(torch.device(device).type, torch.bfloat16):
            y = block_mlp(leaf)
        y.backward(x)
        assert leaf.grad is not None
        found.append((y.detach(), leaf.grad))
    return [_apart(one, other) for one, other in zip(*found, strict=True)]


def _loss_apart(device: str) -> list[float]:
    """The same of the gradient of a small loss, from torch's in fp32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 256, generator=generator).to(device, torch.bfloat16)
    head = torch.randn(512, 256, generator=generator).to(device, torch.bfloat16)
    labels = torch.arange(256, device=device)
    ours, theirs = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    with torch.enable_grad():
        scaled_cross_entropy(ours, head, labels, 128).backward()
        F.cross_entropy(theirs @ head.float().t(), labels, reduction="sum").backward()
    assert ours.grad is not None and theirs.grad is not None
    return [_apart(theirs.grad, ours.grad)]


def _apart(expected: Tensor, found: Tensor) -> float:
    difference = float((found.float() - expected.float()).norm() / expected.float().norm())
    return difference if math.isfinite(difference) else math.inf
