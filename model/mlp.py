"""SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x)), of three matrices."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig


class MLP(nn.Module):
    """From [.., hidden_size] through [.., intermediate_size] and back."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.width_of_mlp, bias=False)
        self.up = nn.Linear(config.hidden_size, config.width_of_mlp, bias=False)
        self.down = nn.Linear(config.width_of_mlp, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
