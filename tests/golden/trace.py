"""Ten training steps of one small decoder per architecture, in fp32 on one thread of a CPU.

    python -m tests.golden.trace > tests/golden/losses.json     # after a change that is meant to move them

A refactoring must not move a bit of them; a change of the computation updates the file in the same commit and
says why. The process restricts itself to kernels that every x86 has, since wider ones round otherwise.
"""

from __future__ import annotations

import json
import os
import sys

SAME_ON_EVERY_CPU = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
STEPS = 10
ROWS, LENGTH, VOCABULARY = 4, 24, 61
SIZES = {"n_layers": 2, "hidden_size": 24, "n_heads": 4, "n_kv_heads": 2}
LATENT = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6}
ARCHITECTURES = {
    "llama": {"qk_norm": False},
    "qwen3": {},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full"},
    "hybrid_norm": {"post_norm": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False},
    "dyt": {"norm": "dyt"},
    "relu2": {"mlp": "relu2"},
    "geglu": {"mlp": "geglu", "logit_softcap": 15.0},
    "sinusoidal": {"positions": "sinusoidal"},
    "no_positions": {"positions": "none"},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 8},
    "windows": {"layer_pattern": "swa", "window": 5, "sink_tokens": 2},
    "mla": {"layer_pattern": "mla", **LATENT},
    "hybrid": {"layer_pattern": "swa,mla", "window": 5, "sink_tokens": 2, "q_lora_rank": 8, **LATENT},
    "experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 16},
    "fused": {"fused_qkv": True, "tie_embeddings": False, "residual_init": "scaled"},
}


def losses(changes: dict[str, object]) -> list[float]:
    """Cross-entropy before each of the steps, nats a label."""
    import torch

    from model.config import ModelConfig
    from model.decoder import Decoder
    from stages.train.objective import CausalObjective
    from stages.train.optimizers import Optimizers
    from stages.train.params import TrainParams

    generator = torch.Generator().manual_seed(1)
    row = torch.randint(2, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    row[:, 1::2] = (row[:, :-1:2] * 7 + 3) % VOCABULARY  # half of the tokens follow from the one before
    segments = (torch.arange(LENGTH) >= 14).long().expand(ROWS, LENGTH)
    positions = torch.arange(LENGTH) - 14 * segments
    model = Decoder(ModelConfig(**{**SIZES, **changes}), VOCABULARY, LENGTH)
    model.initialise(torch.Generator().manual_seed(0))
    objective = CausalObjective(model, z_loss=1e-4).train()
    optimizers = Optimizers(model, TrainParams(lr=0.01, muon_lr=0.02))
    found = []
    for _ in range(STEPS):
        loss, nats = objective(row[:, :-1], row[:, 1:], segments, positions)
        (loss / (ROWS * LENGTH)).backward()
        optimizers.step(1.0, torch.tensor(True))
        optimizers.zero_grad()
        for module in model.modules():
            if hasattr(module, "end_step"):
                module.end_step()
        found.append(nats.item() / (ROWS * LENGTH))
    return found


def main() -> None:
    if any(os.environ.get(name) != value for name, value in SAME_ON_EVERY_CPU.items()):
        os.execve(sys.executable, [sys.executable, "-m", "tests.golden.trace"], {**os.environ, **SAME_ON_EVERY_CPU})
    import torch

    torch.backends.mkldnn.enabled = False
    torch.set_num_threads(1)
    traces = {name: losses(changes) for name, changes in ARCHITECTURES.items()}
    json.dump({"torch": torch.__version__.split("+")[0], "losses": traces}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
