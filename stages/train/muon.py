"""Muon (Jordan et al., 2024): momentum made orthogonal, for the matrices of the blocks.

Adam scales every number by itself; Muon takes the matrix as a whole and gives all of its directions the same length.
Example: the momentum diag(3, 0.1) becomes about diag(1, 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
