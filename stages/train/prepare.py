"""What is done to a model before it trains, in this order. None of it changes what is computed beyond rounding
but the 8-bit products, which are asked for by `train.precision`.

    1. float8        linear layers of blocks multiply in 8 bits        float8.py, float8_mlp.py
    2. fused         products and what follows them in one kernel      fused.py, fused_mlp.py, scaled_cross_entropy.py
    3. activations   blocks keep less for their backward pass          activations.py
    4. objective     the loss, whole or in chunks of tokens            objective.py, cross_entropy.py
    5. compile       each block, the last norm, the head               objective.py
    6. parts         FSDP2, where it is asked for                      sharding.py
    7. micro-step    forward and backward, kernel by kernel or as one CUDA graph    micro_step.py
    8. exchange      gradients of several ranks become one             exchange.py
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from model.decoder import Decoder
from stages.errors import BadInput, Failed
from stages.execution import Execution
from stages.progress import say
from stages.train import feasible
from stages.train.activations import checkpoint_activations, is_compiled_inside
from stages.train.exchange import Exchange, InParts, Summed, begin_alike
from stages.train.float8 import check_device, convert_to_float8
from stages.train.float8_mlp import join_mlps, part_mlps
from stages.train.float8_trial import broken_casts, broken_mlps
from stages.train.fused import tell_fused, wants_fused
from stages.train.fused_mlp import fuse_mlps
from stages.train.micro_step import EagerMicroStep, GraphedMicroStep, MicroStep
from stages.train.objective import OBJECTIVES, compile_parts
from stages.train.own import own_objective
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.sharding import is_sharded, shard

# Tokens whose logits are held at once under `loss_chunk_tokens: auto`. On an H200, 4,096 were as fast as more.
LOSS_CHUNK_TOKENS = {"cpu": 0, "cuda": 4096}
RECOMPILE_LIMIT = 64


def prepare(model: Decoder, params: TrainParams, execution: Execution, ranks: Ranks) -> nn.Module:
    """The objective over the model: inputs, labels, segments and positions in, sums of losses out.

    Raises:
        BadInput: the device cannot do `train.precision`, or has no kernels that are asked for.
    """
    sharded = is_sharded(execution, ranks)
    if params.precision == "fp8":
        check_device(ranks.device)
        names = convert_to_float8(model, params.fp8_scaling, params.fp8_min_width, sharded)
        join_in_float8(model, len(names), params, ranks)
    compiled = wants_compile(execution, ranks)
    fused = wants_fused(model, params, execution, ranks, compiled)
    # Selective checkpointing keeps whole results of operators, so that h of a fused MLP would stay.
    n_fused = fuse_mlps(model) if fused and execution.activation_checkpointing != "selective" else 0
    own_functions = params.precision == "fp8" or n_fused > 0
    checkpoint_activations(model, execution.activation_checkpointing, compiled, own_functions)
    chunk = execution.loss_chunk_tokens
    if chunk == "auto":
        chunk = LOSS_CHUNK_TOKENS[torch.device(ranks.device).type]
    objective: nn.Module
    if params.objective in OBJECTIVES:
        objective = OBJECTIVES[params.objective](model, params.z_loss, params.label_smoothing, chunk, fused)
    else:
        objective = own_objective(params.objective, model, params)
    if fused:
        tell_fused(n_fused, getattr(objective, "fused", False), execution, ranks)
    if compiled:
        if ranks.first:
            say(
                "train: compiling the model, before its first step: about half a minute on a GPU, a minute or two on a "
                "CPU (execution.compile)"
            )
        # Kinds of layers times sizes of batches, in training and validation: more than torch's 8, behind which it
        # goes on without compiling.
        torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
        compile_parts(model, objective, sharded)
    if sharded:
        shard(model, params.precision, ranks)
    elif ranks.world > 1:
        begin_alike(model)
    return objective


def join_in_float8(model: Decoder, n_layers: int, params: TrainParams, ranks: Ranks) -> None:
    """Has MLPs stay in 8 bits where the kernels for it compute rightly, and says what multiplies in them.

    Raises:
        Failed: not even the cast does.
    """
    if broken := broken_casts(ranks.device):
        raise Failed(f"casts to 8 bits do not work here: {broken}; set train.precision to bf16")
    joined = join_mlps(model)
    broken = broken_mlps(model, ranks.device)
    if broken:
        part_mlps(model)
    if ranks.first:
        stay = f"; {joined} MLPs stay in them" if joined and not broken else ""
        say(f"train: {n_layers} linear layers multiply in 8 bits ({params.fp8_scaling}){stay}")
        if broken:
            say(f"train: MLPs go layer by layer: {broken}")


def wants_compile(execution: Execution, ranks: Ranks) -> bool:
    """Whether to compile. `auto` does so on GPUs: on CPUs eager steps with small micro-batches are as fast."""
    return ranks.device.startswith("cuda") if execution.compile == "auto" else execution.compile


def micro_step(
    objective: nn.Module, model: Decoder, params: TrainParams, execution: Execution, ranks: Ranks, rows: int,
    rows_per_step: int,
) -> MicroStep:  # fmt: skip
    """Forward and backward of a micro-batch of `rows` rows, of the `rows_per_step` of all ranks.

    Raises:
        BadInput: CUDA graphs are asked for where they cannot be.
    """
    reason = feasible.no_graph_of(model.config, params) or no_graph_here(execution, ranks)
    if not reason and any(map(is_compiled_inside, model.blocks)):
        kind = execution.activation_checkpointing
        reason = f"execution.activation_checkpointing {kind} has not been tried in graphs with fp8 or fused MLPs"
    if execution.cuda_graphs is True and reason:
        raise BadInput(f"params.yaml: execution.cuda_graphs is true, but {reason}; set it to auto")
    if execution.cuda_graphs is False or reason:
        return EagerMicroStep(objective, ranks.device, params.precision)
    return GraphedMicroStep(objective, ranks.device, params.precision, rows, ranks.world == 1 and rows == rows_per_step)


def exchange(model: Decoder, step: MicroStep, execution: Execution, ranks: Ranks) -> Exchange:
    """What makes one gradient of those of all ranks."""
    if ranks.world == 1:
        return Exchange()
    if is_sharded(execution, ranks):
        return InParts(cast(FSDPModule, model), ranks)
    return Summed(model, overlaps=not isinstance(step, GraphedMicroStep))


def no_graph_here(execution: Execution, ranks: Ranks) -> str:
    """Why a micro-batch cannot be one CUDA graph on these ranks, or the empty text."""
    if not ranks.device.startswith("cuda"):
        return "graphs are for GPUs"
    if is_sharded(execution, ranks):
        return "ranks gather parameters within each pass"
    if not ranks.one_host:
        return "gradients travel between hosts within the backward pass"
    return "" if wants_compile(execution, ranks) else "execution.compile is off"
