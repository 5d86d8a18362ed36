"""Which optimizer moves which parameter, behind one step.

    adamw          everything                          states 8 bytes a parameter, fp32
    muon           matrices of the blocks by Muon, the rest by AdamW           4 and 8
    lion           everything                                                  4
    adamw_8bit     everything, states in 8 bits with a scale for 256           2.03
    adamw_fp8      the same in E4M3                                            2.03
    lion_fp8       everything                                                  1.02

Weight decay is for the matrices of the blocks alone; embeddings, gains and biases have none. The choice is by
shape and place, never by a list of names, and every parameter belongs to exactly one group. Weights are fp32.
Of parameters that lie in parts (sharding.py) each rank moves its own rows, which optimizers take for plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.train.lion import Lion
from stages.train.low_bit import LowBit
from stages.train.muon import Muon
from stages.train.params import TrainParams
from stages.train.parts import Stored
from stages.train.sharding import as_part, local, part

# States of all parameters together at most, bytes a parameter.
STATE_BYTES = {"adamw": 8, "muon": 8, "lion": 4, "adamw_8bit": 3, "adamw_fp8": 3, "lion_fp8": 2}


class Optimizers:
    """The optimizers of a run behind one step, with states by parameter name."""

    def __init__(self, model: nn.Module, params: TrainParams, compiled: bool = False):
        self.parameters = dict(model.named_parameters())
        named = {name: local(parameter) for name, parameter in self.parameters.items()}
        hidden = {name for name, p in named.items() if p.ndim > 1 and name.startswith("blocks.")}
        gains = [p for p in named.values() if p.ndim < 2]
        tables = [p for name, p in named.items() if p.ndim > 1 and name not in hidden]
        matrices = [named[name] for name in named if name in hidden]
        rest = [{"params": gains, "weight_decay": 0.0}, {"params": tables, "weight_decay": 0.0}]
        self.kinds: dict[str, torch.optim.Optimizer] = {}
        if params.optimizer == "muon":
            wholes = {named[name]: self.parameters[name].shape for name in hidden}
            self.kinds["muon"] = Muon(matrices, params.muon_lr, params.muon_momentum, params.weight_decay, wholes)
            self.kinds["adamw"] = adamw(rest, params, "adamw", compiled)
        else:
            decay = params.lion_weight_decay if params.optimizer.startswith("lion") else params.weight_decay
            groups = [*rest, {"params": matrices, "weight_decay": decay}]
            make = lion if params.optimizer.startswith("lion") else adamw
            self.kinds[params.optimizer] = make(groups, params, params.optimizer, compiled)
        self.name_of: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        self.local_of = named
        owned = [p for kind in self.kinds.values() for group in kind.param_groups for p in group["params"]]
        assert len(owned) == len(set(owned)) == len(named), "each parameter belongs to exactly one optimizer"
        for kind in self.kinds.values():
            for group in kind.param_groups:
                group["peak_lr"] = group["lr"]

    def with_gradients(self) -> list[Tensor]:
        """What the optimizers move, in the order of the model's parameters; the gradients are there."""
        for name, parameter in self.parameters.items():
            if self.local_of[name] is not parameter and parameter.grad is not None:
                self.local_of[name].grad = local(parameter.grad)
        return list(self.local_of.values())

    def step(self, multiplier: float, finite: Tensor) -> None:
        """One step at `multiplier` times the peak learning rates; nothing moves where `finite` is false, which the
        device knows and the processor need not wait for."""
        skip = torch.logical_not(finite).to(torch.float32)  # as fused kernels take it, whatever the dtype of weights
        for kind in self.kinds.values():
            kind.found_inf = skip  # type: ignore[attr-defined]
            for group in kind.param_groups:
                group["lr"] = group["peak_lr"] * multiplier
            kind.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kind in self.kinds.values():
            kind.zero_grad(set_to_none=set_to_none)
        for name, parameter in self.parameters.items():
            if self.local_of[name] is not parameter:
                parameter.grad = None

    def state_bytes(self) -> int:
        """Of all states of this rank together; after the first step."""
        return sum(local(tensor).nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All states, named `muon.momentum.blocks.0.mlp.up.weight`; in parts as their parameters are."""
        return {
            f"{kind}.{key}.{self.name_of[parameter]}": self._in_parts(value, self.name_of[parameter])
            for kind, optimizer in self.kinds.items()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Stored]) -> None:
        """Restores what `tensors` gave."""
        for full_name, value in tensors.items():
            kind, key, name = full_name.split(".", 2)
            parameter = self.local_of[name]
            self.kinds[kind].state[parameter][key] = part(value, self.parameters[name]).to(parameter.device)

    def _in_parts(self, value: Tensor, name: str) -> Tensor:
        return as_part(value, self.parameters[name]) if value.ndim else value  # a count of steps has no rows


def adamw(groups: list[dict[str, Any]], params: TrainParams, name: str, compiled: bool) -> torch.optim.Optimizer:
    betas = (params.beta1, params.beta2)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=params.lr, betas=betas, eps=params.adam_eps, fused=True)
    coding = "dynamic8" if name == "adamw_8bit" else "float8"
    return LowBit(groups, "adamw", coding, compiled, params.lr, betas, params.adam_eps)


def lion(groups: list[dict[str, Any]], params: TrainParams, name: str, compiled: bool) -> torch.optim.Optimizer:
    betas = (params.lion_beta1, params.lion_beta2)
    if name == "lion":
        return Lion(groups, params.lion_lr, betas)
    return LowBit(groups, "lion", "float8", compiled, params.lion_lr, betas)
