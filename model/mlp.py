"""The MLP of a block, from [.., hidden_size] and back, chosen by `model.mlp`.

    swiglu   down(silu(gate(x)) * up(x))    Shazeer, 2020; Llama
    geglu    down(gelu(gate(x)) * up(x))    Shazeer, 2020; T5 1.1, Gemma
    gelu     down(gelu(up(x)))              Hendrycks and Gimpel, 2016; GPT-2
    relu2    down(relu(up(x))^2)            So et al., 2021 (Primer)

gelu is the exact one in geglu and its tanh approximation in `gelu`, as GPT-2 has it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu_tanh, "relu2": relu2}


class GatedMLP(nn.Module):
    """Of three matrices. `width` is the inner one, by default that of the config."""

    def __init__(self, config: ModelConfig, width: int = 0):
        super().__init__()
        width = width or config.width_of_mlp
        self.gate = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.up = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.down = nn.Linear(width, config.hidden_size, bias=config.bias)
        self.activation = GATES[config.mlp]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class PlainMLP(nn.Module):
    """Of two matrices."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.width_of_mlp, bias=config.bias)
        self.down = nn.Linear(config.width_of_mlp, config.hidden_size, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))
