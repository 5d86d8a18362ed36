"""Our names and shapes <-> those of Hugging Face transformers, for every decoder that has a twin there.

The architecture follows from the norms alone; the rest (grouped heads, rotary, SwiGLU) is common to all:

    pre_norm  post_norm  qk_norm   transformers
    yes       no         no        Llama      the plain decoder (Mistral where heads do not divide the width)
    yes       no         head      Qwen3      normed queries and keys
    no        yes        full      Olmo2      norm behind each branch
    no        yes        head      Exaone4    the same with norms per head
    yes       yes        no        Gemma2     norm before and behind each branch
    yes       yes        head      Gemma3     the same with normed queries and keys

The rest has no twin and `refuse_unsupported` says so before any work is done. Two things of the Gemmas
differ from ours and go into the weights, exactly but for rounding. Their gain is 1 + weight, so ours of
0.9 becomes -0.1. They multiply embeddings by sqrt(hidden_size), so ours are divided by it, and where
the head is tied to them the gain of the last norm is multiplied by it. With hidden_size 256, an
embedding 0.32 becomes 0.02, read as 0.02 * 16; as the head, 0.02 meets a hidden state 16 times larger.

Rows of the embedding beyond the vocabulary are padding: cut on the way out, zeros on the way in.
This module works on dicts of tensors or arrays and imports neither torch nor transformers; files are
the business of the export stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig, padded_vocabulary
from stages.errors import BadInput

Weights = dict[str, Any]  # tensors of torch, or arrays of numpy

PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
BOTH = {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm", **POST}
MATRICES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
QK_NORMS = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Architecture:
    """A decoder of transformers, and the params that make ours its twin.

    Attributes:
        qk_norm: head, full, or empty for none.
        settings: keys of its config.json that are not common to all.
    """

    model_type: str
    class_name: str
    pre_norm: bool
    post_norm: bool
    qk_norm: str
    settings: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """What in the params chose it, such as `pre_norm and qk_norm (head)`."""
        placed = [name for name in ("pre_norm", "post_norm") if getattr(self, name)]
        return " and ".join([*placed, f"qk_norm ({self.qk_norm})" if self.qk_norm else "no qk_norm"])

    @property
    def norms(self) -> Mapping[str, str]:
        """Our names of the norms beside the branches of a block, and theirs."""
        return BOTH if self.pre_norm and self.post_norm else PRE if self.pre_norm else POST

    @property
    def is_gemma(self) -> bool:
        return self.model_type.startswith("gemma")


SILU = {"hidden_act": "silu"}
NO_BIAS = {"attention_bias": False}
NO_WINDOW = {"sliding_window": None}
GEMMA = {
    "hidden_activation": "silu",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    **NO_BIAS,
}
BOTH_WAYS = {"use_bidirectional_attention": False}

LLAMA = Architecture("llama", "LlamaForCausalLM", True, False, "", {**SILU, **NO_BIAS, "mlp_bias": False})
MISTRAL = Architecture("mistral", "MistralForCausalLM", True, False, "", {**SILU, **NO_WINDOW})
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", True, False, "head", {**SILU, **NO_BIAS, "use_sliding_window": False})
OLMO2 = Architecture("olmo2", "Olmo2ForCausalLM", False, True, "full", {**SILU, **NO_BIAS})
EXAONE4 = Architecture("exaone4", "Exaone4ForCausalLM", False, True, "head", {**SILU, **NO_WINDOW})
GEMMA2 = Architecture("gemma2", "Gemma2ForCausalLM", True, True, "", GEMMA)
GEMMA3 = Architecture("gemma3_text", "Gemma3ForCausalLM", True, True, "head", {**GEMMA, **BOTH_WAYS})
ARCHITECTURES = {a.model_type: a for a in (LLAMA, MISTRAL, QWEN3, OLMO2, EXAONE4, GEMMA2, GEMMA3)}


def refuse_unsupported(config: ModelConfig) -> str | None:
    """Why transformers has no twin of this decoder, in one line, or None if it has one."""
    architecture = _choose(config)
    if architecture is None:
        placed = " and ".join(name for name in ("pre_norm", "post_norm") if getattr(config, name))
        scope = f"qk_norm_scope {config.qk_norm_scope}" if config.qk_norm else "no qk_norm"
        mend = "qk_norm_scope: head" if config.qk_norm else "qk_norm: true"
        return f"transformers has no decoder with {placed} and {scope}, so it could not be exported; set {mend}"
    if architecture.is_gemma and config.hidden_size % config.n_heads:
        return (
            f"transformers' {architecture.class_name}, the twin of pre_norm with post_norm, asks that n_heads "
            f"{config.n_heads} divides hidden_size {config.hidden_size}; change one of them"
        )
    return None


def architecture_of(config: ModelConfig) -> Architecture:
    """The twin of this decoder.

    Raises:
        BadInput: it has none.
    """
    reason = refuse_unsupported(config)
    if reason is not None:
        raise BadInput(f"params.yaml: model: {reason}")
    architecture = _choose(config)
    assert architecture is not None
    return architecture


def to_huggingface(
    weights: Weights, config: ModelConfig, vocab_size: int, context_length: int, token_ids: Mapping[str, int]
) -> tuple[dict[str, Any], Weights]:
    """config.json and the weights of the twin.

    Args:
        weights: `Decoder.state_dict()`.
        vocab_size: ids below it are real; rows from there on are left out.
        context_length: the longest input that training saw.
        token_ids: bos_token_id, eos_token_id and pad_token_id.

    Returns:
        The configuration, in the form of transformers 5, and tensors by their names there.
    """
    architecture = architecture_of(config)
    names = _names(architecture, config)
    theirs = {names[name]: tensor for name, tensor in weights.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in theirs:
            theirs[name] = theirs[name][:vocab_size]
    if architecture.is_gemma:
        _scale_embedding(theirs, config.hidden_size**-0.5, config.tie_embeddings)
        theirs = {name: tensor - 1 if _is_norm(name) else tensor for name, tensor in theirs.items()}
    return _settings(architecture, config, vocab_size, context_length, token_ids), theirs


def from_huggingface(settings: Mapping[str, Any], weights: Weights) -> tuple[ModelConfig, Weights]:
    """The decoder that a config.json of one of these architectures describes, and its weights (of torch).

    Raises:
        BadInput: an architecture, or a setting of it, that our decoder does not have.
    """
    config = _config(settings)
    architecture = ARCHITECTURES[settings["model_type"]]
    theirs = dict(weights)
    if config.tie_embeddings:
        theirs.pop("lm_head.weight", None)  # some files hold the tied matrix twice
    if architecture.is_gemma:
        theirs = {name: tensor + 1 if _is_norm(name) else tensor for name, tensor in theirs.items()}
        _scale_embedding(theirs, config.hidden_size**0.5, config.tie_embeddings)
    names = _names(architecture, config)
    if wrong := sorted(set(names.values()) ^ set(theirs)):
        raise BadInput(f"model.safetensors: {wrong[0]} is missing or has no place in {architecture.class_name}")
    ours = {name: theirs[their_name] for name, their_name in names.items()}
    for name in ("embedding.weight", "head.weight"):
        if name in ours:
            rows = padded_vocabulary(settings["vocab_size"])
            padded = ours[name].new_zeros(rows, config.hidden_size)
            padded[: settings["vocab_size"]] = ours[name]
            ours[name] = padded
    return config, ours


def _choose(config: ModelConfig) -> Architecture | None:
    wanted = (config.pre_norm, config.post_norm, config.qk_norm_scope if config.qk_norm else "")
    for architecture in ARCHITECTURES.values():
        if (architecture.pre_norm, architecture.post_norm, architecture.qk_norm) == wanted:
            return MISTRAL if architecture is LLAMA and config.hidden_size % config.n_heads else architecture
    return None


def _names(architecture: Architecture, config: ModelConfig) -> dict[str, str]:
    """Every parameter of the decoder by our name, with theirs."""
    within_block = {**MATRICES, **architecture.norms, **(QK_NORMS if config.qk_norm else {})}
    names = {"embedding.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    for i in range(config.n_layers):
        for our, their in within_block.items():
            names[f"blocks.{i}.{our}.weight"] = f"model.layers.{i}.{their}.weight"
    if not config.tie_embeddings:
        names["head.weight"] = "lm_head.weight"
    return names


def _is_norm(their_name: str) -> bool:
    return their_name.endswith("norm.weight")


def _scale_embedding(theirs: Weights, factor: float, tied: bool) -> None:
    """Takes the Gemmas' sqrt(hidden_size) out of the embedding or puts it back, gains being true gains."""
    theirs["model.embed_tokens.weight"] = theirs["model.embed_tokens.weight"] * factor
    if tied:
        theirs["model.norm.weight"] = theirs["model.norm.weight"] / factor


def _settings(
    architecture: Architecture, config: ModelConfig, vocab_size: int, context_length: int, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    settings = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.width_of_mlp,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.width_of_head,
        "max_position_embeddings": context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rotary,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "attention_dropout": 0.0,
        "use_cache": True,
        **token_ids,
        **architecture.settings,
    }
    if architecture.is_gemma:
        settings["query_pre_attn_scalar"] = config.width_of_head
        settings["sliding_window"] = context_length  # asked for, used by no layer
    if architecture in (GEMMA2, GEMMA3, EXAONE4):
        settings["layer_types"] = ["full_attention"] * config.n_layers
    if architecture is GEMMA3:
        settings["rope_parameters"] = {"full_attention": rotary, "sliding_attention": rotary}
    return settings


def _config(settings: Mapping[str, Any]) -> ModelConfig:
    architecture = ARCHITECTURES.get(settings["model_type"])
    if architecture is None:
        raise BadInput(f"config.json: model_type is {settings['model_type']}; known are {', '.join(ARCHITECTURES)}")
    n_heads, hidden_size = settings["num_attention_heads"], settings["hidden_size"]
    head_dim = settings.get("head_dim") or hidden_size // n_heads
    rotary = settings["rope_parameters"].get("full_attention", settings["rope_parameters"])
    ours = {
        **architecture.settings,
        "layer_types": ["full_attention"] * settings["num_hidden_layers"],
        "query_pre_attn_scalar": head_dim,
        "rope_type": "default",
    }
    for key, value in ours.items():
        theirs = {**settings, **rotary}.get(key, value)
        if theirs != value:
            raise BadInput(f"config.json: {key} is {theirs!r}; our decoder is the one of {value!r}")
    return ModelConfig(
        n_layers=settings["num_hidden_layers"],
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=settings["num_key_value_heads"],
        head_dim=head_dim,
        intermediate_size=settings["intermediate_size"],
        pre_norm=architecture.pre_norm,
        post_norm=architecture.post_norm,
        qk_norm=bool(architecture.qk_norm),
        qk_norm_scope="full" if architecture.qk_norm == "full" else "head",
        norm_eps=settings["rms_norm_eps"],
        rope_theta=rotary["rope_theta"],
        tie_embeddings=settings["tie_word_embeddings"],
        init_std=settings["initializer_range"],
    )
