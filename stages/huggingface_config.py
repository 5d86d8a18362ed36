"""config.json of transformers -> our ModelConfig, refused where our decoder is not exactly the same function.

Files of transformers 4, which most of the hub are, are read as those of 5:

    5   "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    4   "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}

A key that a file leaves out means what transformers takes it to mean: a Gemma2 without
`attn_logit_softcapping` caps its scores at 50, and is refused. Fields of ours that such a decoder does not
read keep our defaults: `sink_tokens` without windows, `qk_norm` in latent attention. What only a training
reads is not carried over: dropout, and the losses of a router.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from model.config import ModelConfig
from stages.errors import BadInput
from stages.huggingface_settings import LAYER_TYPES, LLAMA3, SIZES_OF_LATENT, YARN
from stages.huggingface_twins import (
    ARCHITECTURES,
    GEMMA3,
    LATENT_NORM_EPS,
    LLAMA,
    OLMO3,
    Architecture,
    fits,
)
from stages.huggingface_values import problem_with

SCALINGS = ("default", "linear", "yarn", "llama3")
ONE_IN = {"gemma2": 2, "olmo3": 4}  # where no key says it: of so many layers the last sees everything


class Settings:
    """A config.json by the keys of Llama, complete with what transformers takes absent keys to be."""

    def __init__(self, architecture: Architecture, given: Mapping[str, Any]):
        self.architecture, self.given = architecture, given

    def name(self, key: str) -> str:
        """The key as this file has it."""
        names = self.architecture.keys.get(key, (key,))
        return next((name for name in names if name in self.given), names[0])

    def __contains__(self, key: str) -> bool:
        return self.name(key) in self.given or key in self.architecture.defaults

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise BadInput(f"config.json: {self.name(key)} is missing")
        value = self.given.get(self.name(key), self.architecture.defaults.get(key))
        if problem := problem_with(self.architecture.model_type, key, value):
            raise BadInput(f"config.json: {self.name(key)} {problem}")
        return value

    def optional(self, key: str) -> Any:
        """The value of a key that nothing stands for where it is absent."""
        return self[key] if key in self.given else None

    def refuse(self, key: str, ours: str) -> NoReturn:
        found = repr(self[key]) if key in self else "missing"
        raise BadInput(f"config.json: {self.name(key)} is {found}; our decoder {ours}")


def config_of(given: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a config.json describes.

    Raises:
        BadInput: it is none of ours; the key that says so is named.
    """
    model_type = given.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise BadInput(f"config.json: model_type is {model_type}; known are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]
    settings = Settings(architecture, given)
    for key, value in {**architecture.fixed, "quantization_config": None}.items():
        if key in settings and (settings[key] or None) != (value or None):
            settings.refuse(key, f"is the one of {value!r}")
    if settings["hidden_act"] not in architecture.activations:
        settings.refuse("hidden_act", f"has {', '.join(architecture.activations)}")
    fields = {**_sizes(settings), **_parts(settings)}
    if architecture.positions == "rope":
        fields.update(_attention(settings))
    try:
        config = ModelConfig(**fields)
    except (ValueError, TypeError) as error:
        raise BadInput(f"config.json: {error}") from None
    if not fits(architecture, config):
        raise BadInput(f"config.json: this {architecture.class_name} is not our decoder of {fields}")
    return config


def vocab_size_of(given: Mapping[str, Any]) -> int:
    """The rows of the embedding that a config.json, one that `config_of` reads, tells of."""
    return Settings(ARCHITECTURES[given["model_type"]], given)["vocab_size"]


def _sizes(settings: Settings) -> dict[str, Any]:
    n_heads, hidden_size = settings["num_attention_heads"], settings["hidden_size"]
    sizes = {
        "n_layers": settings["num_hidden_layers"],
        "hidden_size": hidden_size,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": hidden_size // n_heads,
        "intermediate_size": settings["intermediate_size"] or 4 * hidden_size,  # GPT-2's may be null
        "norm_eps": settings["rms_norm_eps"],
        "tie_embeddings": settings["tie_word_embeddings"],
        "init_std": settings["initializer_range"],
    }
    if settings.architecture.is_gpt2:
        return sizes
    sizes["n_kv_heads"] = settings["num_key_value_heads"] or n_heads
    if settings.architecture.latent:
        # Nothing reads it there. 0 is our default, but asks that heads divide the width.
        sizes["head_dim"] = settings["qk_rope_head_dim"] if hidden_size % n_heads else 0
    elif settings["head_dim"]:
        sizes["head_dim"] = settings["head_dim"]
    return sizes


def _parts(settings: Settings) -> dict[str, Any]:
    architecture = settings.architecture
    parts = {
        "pre_norm": architecture.pre_norm,
        "post_norm": architecture.post_norm,
        "norm": architecture.norm,
        "positions": architecture.positions,
        "mlp": architecture.activations[settings["hidden_act"]],
        "bias": architecture.biases == (True,),
    }
    if not architecture.latent:
        parts["qk_norm"] = bool(architecture.qk_norm)
        parts["qk_norm_scope"] = architecture.qk_norm or "head"
    if architecture is LLAMA:
        parts["bias"] = settings["attention_bias"]
        if settings["mlp_bias"] != settings["attention_bias"]:
            settings.refuse("mlp_bias", "has biases everywhere or nowhere, and attention_bias is the other")
    if architecture.logit_softcap:
        parts["logit_softcap"] = settings["final_logit_softcapping"] or 0.0
    if architecture.experts:
        parts.update(_experts(settings))
    return parts


def _experts(settings: Settings) -> dict[str, Any]:
    counts = {"n_experts": settings["num_experts"], "experts_per_token": settings["num_experts_per_tok"]}
    if not settings.architecture.leading_dense_layers:
        return counts
    dense = list(settings["mlp_only_layers"] or ())
    if sorted(dense) != list(range(len(dense))):
        settings.refuse("mlp_only_layers", "has its dense layers before those with experts")
    return {**counts, "expert_size": settings["moe_intermediate_size"], "dense_layers": len(dense)}


def _attention(settings: Settings) -> dict[str, Any]:
    """Kinds of the layers, and the rotary embedding."""
    if settings.architecture.latent:
        return {**_latent(settings), **_rotary(settings, "full_attention")}
    if settings.architecture.is_gemma and settings["query_pre_attn_scalar"] != (settings["head_dim"] or 0):
        settings.refuse("query_pre_attn_scalar", f"has that of head_dim, {settings['head_dim']}")
    types = _layer_types(settings)
    rotary, *others = (_rotary(settings, name) for name in dict.fromkeys(types))
    if any(other != rotary for other in others):
        found = ", ".join(f"{name} {_rotary_entry(settings, name)}" for name in dict.fromkeys(types))
        raise BadInput(f"config.json: rope_parameters are {found}; our decoder has one for all layers")
    fields = {**rotary, "layer_pattern": contract([LAYER_TYPES[name] for name in types])}
    if "sliding_attention" in types:
        fields.update(window=settings["sliding_window"], sink_tokens=0)
    return fields


def _latent(settings: Settings) -> dict[str, Any]:
    n_layers = settings["num_hidden_layers"]
    if settings["first_k_dense_replace"] < n_layers:
        settings.refuse("first_k_dense_replace", f"has no experts of this kind: it is that of {n_layers}, all layers")
    if settings["num_key_value_heads"] not in (None, settings["num_attention_heads"]):
        settings.refuse("num_key_value_heads", "has as many as num_attention_heads in latent attention")
    if settings["rms_norm_eps"] != LATENT_NORM_EPS:
        settings.refuse(
            "rms_norm_eps", f"has one for all norms, and those within this attention have {LATENT_NORM_EPS}"
        )
    sizes = {key: settings[key] for key in SIZES_OF_LATENT}
    return {**sizes, "q_lora_rank": settings["q_lora_rank"] or 0, "layer_pattern": "mla"}


def _layer_types(settings: Settings) -> list[str]:
    """full_attention or sliding_attention for every layer, as transformers understands the file."""
    architecture, n_layers = settings.architecture, settings["num_hidden_layers"]
    switched_off = "use_sliding_window" in architecture.defaults and not settings["use_sliding_window"]
    window = None if architecture.windows == "none" or switched_off else settings["sliding_window"]
    given = settings.optional("layer_types")
    types = given or _default_layer_types(settings, window)
    if len(types) != n_layers or not set(types) <= set(LAYER_TYPES):
        settings.refuse("layer_types", f"has {' or '.join(LAYER_TYPES)} for each of {n_layers} layers")
    windowed = "sliding_attention" in types
    # Where all layers are alike, a window is the switch: an Exaone4 with one has no positions in its full layers.
    mixed = architecture.windows != "each" and (len(set(types)) > 1 or windowed != bool(window))
    if mixed or (windowed and not window):
        settings.refuse("layer_types" if given else "sliding_window", "cannot have these windows")
    return types


def _default_layer_types(settings: Settings, window: int | None) -> list[str]:
    architecture, n_layers = settings.architecture, settings["num_hidden_layers"]
    every = ONE_IN.get(architecture.model_type, 0)
    if "sliding_window_pattern" in architecture.defaults:
        every = settings["sliding_window_pattern"]
        if not isinstance(every, int):
            settings.refuse("sliding_window_pattern", "needs layer_types beside it")
    always = architecture.is_gemma or architecture is OLMO3  # without a window they are an error, found later
    if not (window or always):
        return ["full_attention"] * n_layers
    first = settings["max_window_layers"] if "max_window_layers" in architecture.defaults else 0
    windowed = [i >= first and not (every and (i + 1) % every == 0) for i in range(n_layers)]
    return ["sliding_attention" if w else "full_attention" for w in windowed]


def contract(kinds: Sequence[str]) -> str:
    """The shortest layer_pattern of these layers. Example: swa, swa, full, swa, swa is "swa*2+full"."""
    n = len(kinds)
    period = next(p for p in range(1, n + 1) if all(kinds[i] == kinds[i % p] for i in range(n)))
    terms: list[list[Any]] = []
    for kind in kinds[:period]:
        if terms and terms[-1][0] == kind:
            terms[-1][1] += 1
        else:
            terms.append([kind, 1])
    return "+".join(kind if count == 1 else f"{kind}*{count}" for kind, count in terms)


def _rotary_entry(settings: Settings, layer_type: str) -> dict[str, Any]:
    """What a file says of the rotary embedding of one type of layer, in the form of transformers 5."""
    architecture, given = settings.architecture, settings.given
    scaling, parameters = settings.optional("rope_scaling") or {}, settings.optional("rope_parameters") or {}
    theta = settings["rope_theta"]
    if architecture in (GEMMA3, OLMO3):
        entry = dict(_checked(settings, parameters).get(layer_type) or {})
        if layer_type == "full_attention":
            entry.update(scaling)
        else:  # the theta of a file of transformers 4 is not read for them
            theta = settings["rope_local_base_freq"] if architecture is GEMMA3 else architecture.defaults["rope_theta"]
    else:
        entry = dict(scaling or parameters)
    entry.setdefault("rope_type", entry.pop("type", "default"))
    entry.setdefault("rope_theta", theta)
    entry.setdefault("original_max_position_embeddings", given.get("max_position_embeddings"))
    if "original_max_position_embeddings" in given:  # transformers prefers it
        entry["original_max_position_embeddings"] = given["original_max_position_embeddings"]
    entry.setdefault("partial_rotary_factor", given.get("partial_rotary_factor"))
    return _checked(settings, entry)


def _checked(settings: Settings, entry: dict[str, Any]) -> dict[str, Any]:
    """What stands in rope_parameters or rope_scaling, each value of the kind that its key has."""
    for key, value in entry.items():
        if problem := problem_with(settings.architecture.model_type, key, value):
            raise BadInput(f"config.json: {key} of the rotary embedding {problem}")
    return entry


def _rotary(settings: Settings, layer_type: str) -> dict[str, Any]:
    entry = _rotary_entry(settings, layer_type)
    kind, factor = entry["rope_type"], entry.get("factor")

    def ask(key: str, *allowed: Any) -> None:
        if entry.get(key) not in allowed:
            wanted = " or ".join(repr(value) for value in allowed if value is not None)
            raise BadInput(f"config.json: {key} is {entry.get(key)!r}; our decoder has {wanted or 'none'}")

    ask("rope_type", *SCALINGS)
    ask("partial_rotary_factor", None, 1.0)
    for nested in LAYER_TYPES:
        ask(nested, None)
    if kind == "default":
        return {"rope_theta": entry["rope_theta"]}
    if not factor:
        raise BadInput(f"config.json: factor is missing in rope_parameters of rope_type {kind}")
    if kind == "yarn":
        for key, value in YARN.items():
            ask(key, None, value)
        for key in ("mscale", "mscale_all_dim"):
            ask(key, None, 0)
        ask("truncate", None, True)
        scale = entry.get("attention_factor")
        if scale is not None and not math.isclose(scale, 0.1 * math.log(factor) + 1, rel_tol=1e-6):
            ask("attention_factor", 0.1 * math.log(factor) + 1)
    if kind == "llama3":
        for key, value in LLAMA3.items():
            ask(key, value)
    fields: dict[str, Any] = {"rope_theta": entry["rope_theta"], "rope_scaling": kind, "rope_factor": factor}
    if kind != "linear":
        fields["rope_original_length"] = entry["original_max_position_embeddings"]
    return fields
