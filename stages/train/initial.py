"""First weights from a Hugging Face folder, `model.init_from`, instead of random ones.

The params must describe the very architecture of the folder, so that a run's params always say what was
trained; where they do not, the error lists the lines that would. The vocabulary is that of the packed data.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from model.config import ModelConfig
from model.decoder import Decoder
from stages.entry import file_sha256
from stages.errors import BadInput
from stages.huggingface import from_huggingface

# How new weights are drawn, what training adds, and where weights come from: no property of the folder.
FREE = {"preset", "init_std", "residual_init", "init_from", "init_sha256", "dropout", "balance_loss", "router_z_loss"}


def load_initial_weights(model: Decoder, vocab_size: int) -> None:
    """Fills the decoder.

    Raises:
        BadInput: no such folder, another sha256, another architecture or another vocabulary.
    """
    from safetensors.torch import load_file

    config = model.config
    folder = Path(config.init_from).expanduser()
    weights = folder / "model.safetensors"
    if not weights.is_file() or not (folder / "config.json").is_file():
        raise BadInput(f"params.yaml: model.init_from: {folder} has no config.json with a model.safetensors")
    if (found := file_sha256(weights)) != config.init_sha256:
        raise BadInput(
            f"params.yaml: model.init_sha256: {weights} has sha256 {found}, not {config.init_sha256}; if it is the "
            "one you mean, set model.init_sha256 to it"
        )
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("vocab_size") != vocab_size:
        raise BadInput(
            f"params.yaml: model.init_from: {folder} has a vocabulary of {settings.get('vocab_size')}, the packed data "
            f"one of {vocab_size}; both must come from one tokenizer"
        )
    theirs, tensors = from_huggingface(settings, load_file(weights))
    if lines := differences(config, theirs):
        raise BadInput(f"params.yaml: model.init_from: {folder} is another architecture; set {', '.join(lines)}")
    if model.position_embedding is not None:
        table = tensors["position_embedding.weight"]
        wanted = model.position_embedding.num_embeddings
        if len(table) < wanted:
            raise BadInput(
                f"params.yaml: model.init_from: {folder} has {len(table)} learned positions, pack.context_length is "
                f"{wanted}; set pack.context_length to at most {len(table)}"
            )
        tensors["position_embedding.weight"] = table[:wanted]
    model.load_state_dict(tensors)


def differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """The params that would have to change, as `model.n_layers=12`."""
    mine, yours = dataclasses.asdict(ours), dataclasses.asdict(theirs)
    for described, config in ((mine, ours), (yours, theirs)):  # derived sizes as what they come to
        described.update(head_dim=config.width_of_head, intermediate_size=config.width_of_mlp)
        described.update(expert_size=config.width_of_expert, layer_pattern=",".join(config.kinds))
    free = set(FREE)
    if set(ours.kinds) == {"mla"}:
        free |= {"n_kv_heads", "head_dim", "qk_norm", "qk_norm_scope", "qk_norm_gain"}  # which it does not read
    if "swa" not in ours.kinds:
        free |= {"window", "sink_tokens"}
    return [f"model.{key}={yours[key]}" for key in mine if key not in free and mine[key] != yours[key]]
