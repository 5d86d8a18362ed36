"""AdamW and Muon, and which parameter each of them moves.

`adamw` moves everything. `muon` moves the matrices of the blocks by Muon, and embeddings, head, gains
and biases by AdamW. Weight decay applies to matrices alone, embeddings and gains have none; the choice is
by shape and place, never by a list of names. Every parameter belongs to exactly one group.

States are fp32, as the weights are: 8 bytes a parameter under AdamW, 4 under Muon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.train.params import TrainParams

# Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: the quintic whose
# five steps bring every singular value near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: U V^T of the gradient's U S V^T.

    The update of a [rows, columns] matrix is scaled by sqrt(max(1, rows / columns)), so that its
    effect on the output does not depend on the shape. Matrices of one shape are stacked and
    orthogonalised together; a parameter of three dimensions is a stack already, of experts.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    found_inf: Tensor | None = None  # a 1 leaves everything as it is, as with torch's fused optimizers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        skip = torch.zeros(()) if self.found_inf is None else self.found_inf
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    gradient, state = parameter.grad, self.state[parameter]
                    assert gradient is not None, "a matrix without a gradient: it takes no part in the loss"
                    momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                    gradient = torch.where(skip > 0, momentum, gradient)  # which moves a mean by nothing
                    momentum.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(momentum, group["momentum"]))
                scale = max(1.0, shape[-2] / shape[-1]) ** 0.5
                rate = group["lr"] * (1 - skip)
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - rate * group["weight_decay"])
                    parameter.sub_(update.to(parameter.dtype) * (rate * scale))


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, about, to a stack [.., rows, columns]; bf16 on GPUs."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Optimizers:
    """The optimizers of a run behind one step, with states by parameter name."""

    def __init__(self, model: nn.Module, params: TrainParams):
        named = dict(model.named_parameters())
        hidden = {name for name, p in named.items() if p.ndim > 1 and name.startswith("blocks.")}
        gains = [p for p in named.values() if p.ndim < 2]
        tables = [p for name, p in named.items() if p.ndim > 1 and name not in hidden]
        matrices = [named[name] for name in named if name in hidden]
        adamw_groups = [
            {"params": gains, "weight_decay": 0.0},
            {"params": tables, "weight_decay": 0.0},
        ]
        self.kinds: dict[str, torch.optim.Optimizer] = {}
        if params.optimizer == "muon":
            self.kinds["muon"] = Muon(matrices, params.muon_lr, params.muon_momentum, params.weight_decay)
        else:
            adamw_groups.append({"params": matrices, "weight_decay": params.weight_decay})
        self.kinds["adamw"] = torch.optim.AdamW(
            adamw_groups, lr=params.lr, betas=(params.beta1, params.beta2), eps=params.adam_eps, fused=True
        )
        self.name_of: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        self.parameter_of = named
        owned = [p for kind in self.kinds.values() for group in kind.param_groups for p in group["params"]]
        assert len(owned) == len(set(owned)) == len(named), "each parameter belongs to exactly one optimizer"
        for kind in self.kinds.values():
            for group in kind.param_groups:
                group["peak_lr"] = group["lr"]

    def step(self, multiplier: float, finite: Tensor) -> None:
        """One step at `multiplier` times the peak learning rates; nothing moves where `finite` is false, which the
        device knows and the processor need not wait for."""
        skip = torch.logical_not(finite).float()
        for kind in self.kinds.values():
            kind.found_inf = skip  # type: ignore[attr-defined]
            for group in kind.param_groups:
                group["lr"] = group["peak_lr"] * multiplier
            kind.step()

    def zero_grad(self) -> None:
        for kind in self.kinds.values():
            kind.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All states as plain tensors, named `muon.momentum.blocks.0.mlp.up.weight`."""
        return {
            f"{kind}.{key}.{self.name_of[parameter]}": value
            for kind, optimizer in self.kinds.items()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `tensors` gave."""
        for full_name, value in tensors.items():
            kind, key, name = full_name.split(".", 2)
            parameter = self.parameter_of[name]
            device = parameter.device if value.ndim or kind == "adamw" else value.device
            self.kinds[kind].state[parameter][key] = value.to(device)
