"""Muon (Jordan et al., 2024): momentum made orthogonal, for the matrices of the blocks.

Adam scales every number by itself; Muon takes the matrix as a whole and gives all of its directions the same length.
Example: the momentum diag(3, 0.1) becomes about diag(1, 1).

Where ranks hold rows of each matrix (sharding.py), every rank makes its share of the matrices of a shape orthogonal:
they are exchanged so that it has those whole, and back. Example: 12 matrices on 2 ranks are two exchanges of half the
bytes of the momenta, and 6 products a rank instead of 12.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed

# Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: the quintic whose
# five steps bring every singular value near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: U V^T of the gradient's U S V^T.

    The update of a [rows, columns] matrix is scaled by sqrt(max(1, rows / columns)), so that its
    effect on the output does not depend on the shape. Matrices of one shape are stacked and
    orthogonalised together; a parameter of three dimensions is a stack already, of experts.

    Args:
        wholes: the shapes of the matrices of which `parameters` are rows; without, they are whole.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float,
        wholes: Mapping[Tensor, torch.Size] | None = None,
    ):  # fmt: skip
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.wholes = wholes or {}
        self.in_rows = any(parameter.shape != shape for parameter, shape in self.wholes.items())

    found_inf: Tensor | None = None  # a 1 leaves everything as it is, as with torch's fused optimizers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        skip = torch.zeros(()) if self.found_inf is None else self.found_inf
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[self.wholes.get(parameter, parameter.shape)].append(parameter)
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
                stacked = torch.stack(updates)
                stacked = orthogonalise_rows(stacked, shape[0]) if self.in_rows else orthogonalise(stacked)
                for parameter, update in zip(parameters, stacked, strict=True):
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


def orthogonalise_rows(rows_MRC: Tensor, n_rows: int) -> Tensor:
    """The same of M matrices of `n_rows` rows, of which this rank holds R: every rank's next ones, the last rank's
    fewer. Shapes: W ranks, K matrices made orthogonal by each."""
    W, (M, R, C) = distributed.get_world_size(), rows_MRC.shape
    K, most = -(-M // W), -(-n_rows // W)
    rows = rows_MRC.new_zeros(W * K, most, C)
    rows[:M, :R] = rows_MRC
    mine = torch.empty_like(rows)  # in the end [W, K, most, C]: of my matrices, every rank's rows
    distributed.all_to_all_single(mine, rows)
    wholes = mine.view(W, K, most, C).transpose(0, 1).reshape(K, W * most, C)
    made = orthogonalise(wholes[:, :n_rows])
    padded = made.new_zeros(K, W * most, C)
    padded[:, :n_rows] = made
    back = torch.empty(W * K, most, C, dtype=made.dtype, device=made.device)
    distributed.all_to_all_single(back, padded.view(K, W, most, C).transpose(0, 1).contiguous())
    return back[:M, :R]
