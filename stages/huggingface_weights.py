"""Tensors of Decoder.state_dict() <-> those of transformers, for stages/huggingface_twins.py.

Mostly other names. A `Piece` is one tensor of theirs and what of ours it is made of:

    model.layers.0.self_attn.q_proj.weight     attention.query.weight
    model.layers.0.mlp.experts.gate_up_proj    mlp.gate and mlp.up, [E, F, C] each, joined to [E, 2F, C]
    transformer.h.0.attn.c_attn.weight         query, key and value joined, and transposed: a Conv1D

Two things of the Gemmas go into the weights, exactly but for rounding. Their gain is 1 + weight, so ours
of 0.9 becomes -0.1. They multiply embeddings by sqrt(hidden_size), so ours are divided by it, and where
the head is tied to them the gain of the last norm is multiplied by it. With hidden_size 256, an
embedding 0.32 becomes 0.02, read as 0.02 * 16; as the head, 0.02 meets a hidden state 16 times larger.

DeepseekV3 rotates neighbouring rows, we row i and row i + d/2: the rotary rows 0 1 2 3 of ours are its 0 2 1 3.

Files of the hub differ from what transformers has in memory: experts each by its own name, masks beside the
weights, names without the first part, bf16. All of that is read; experts are written so (`as_on_the_hub`), for those
who know files alone, as vLLM does. Rows of the embedding beyond the vocabulary
are padding: cut on the way out, zeros on the way in.

Works on dicts of tensors or, on the way out, of arrays of numpy, and imports neither.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig, padded_vocabulary
from stages.errors import BadInput
from stages.huggingface_twins import Architecture

Weights = dict[str, Any]  # tensors of torch, or arrays of numpy

PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
BOTH = {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm", **POST}
QK_NORMS = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
ATTENTION = {
    "self_attn.q_proj": ("attention.query",),
    "self_attn.k_proj": ("attention.key",),
    "self_attn.v_proj": ("attention.value",),
    "self_attn.o_proj": ("attention.output",),
}
LATENT = {
    "self_attn.kv_a_proj_with_mqa": ("attention.key_value_down",),
    "self_attn.kv_b_proj": ("attention.key_value_up",),
    "self_attn.o_proj": ("attention.output",),
}
LATENT_QUERY = {"self_attn.q_a_proj": ("attention.query_down",), "self_attn.q_b_proj": ("attention.query_up",)}
LATENT_DIRECT_QUERY = {"self_attn.q_proj": ("attention.query_up",)}
MLP = {"mlp.gate_proj": ("mlp.gate",), "mlp.up_proj": ("mlp.up",), "mlp.down_proj": ("mlp.down",)}
GPT2_MATRICES = {
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}
GPT2_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
# Names of one expert's gate, up and down in the files of Mixtral and of Qwen3Moe.
HUB_EXPERTS = {"block_sparse_moe": ("w1", "w3", "w2"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NO_WEIGHTS = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")  # masks, frequencies


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs: ours, joined along an axis in equal parts, then perhaps transposed."""

    their: str
    ours: tuple[str, ...]
    axis: int = 0
    transposed: bool = False


def to_theirs(architecture: Architecture, config: ModelConfig, vocab_size: int, weights: Weights) -> Weights:
    """The tensors of the twin, contiguous."""
    ours = _plain(architecture, config, weights)
    theirs = {}
    for piece in _pieces(architecture, config):
        parts = [ours.pop(name) for name in piece.ours]
        joined = parts[0] if len(parts) == 1 else _library(parts[0]).concatenate(parts, piece.axis)
        theirs[piece.their] = joined.T if piece.transposed else joined
    assert not ours, f"{next(iter(ours))} has no place in {architecture.class_name}"
    for name in (_embedding(architecture), "lm_head.weight"):
        if name in theirs:
            theirs[name] = theirs[name][:vocab_size]
    if architecture.is_gemma:
        _scale_embedding(theirs, config.hidden_size**-0.5, config.tie_embeddings)
        theirs = {name: tensor - 1 if _is_norm(name) else tensor for name, tensor in theirs.items()}
    if architecture.latent:
        theirs = {name: _rotary_rows(config, name, tensor, neighbours=True) for name, tensor in theirs.items()}
    return {name: _contiguous(tensor) for name, tensor in theirs.items()}


def _rotary_rows(config: ModelConfig, name: str, tensor: Any, neighbours: bool) -> Any:
    """The rotary rows of latent attention side by side, or, the other way round, in halves."""
    width = config.qk_rope_head_dim
    if name.endswith((".q_proj.weight", ".q_b_proj.weight")):
        heads = tensor.reshape(config.n_heads, -1, tensor.shape[-1])
    elif name.endswith(".kv_a_proj_with_mqa.weight"):
        heads = tensor[None]
    else:
        return tensor
    pair = (2, width // 2) if neighbours else (width // 2, 2)
    rotary = heads[:, -width:]
    turned = rotary.reshape(len(heads), *pair, -1).swapaxes(1, 2).reshape(rotary.shape)
    return _library(tensor).concatenate([heads[:, :-width], turned], 1).reshape(tensor.shape)


def as_on_the_hub(model_type: str, theirs: Weights) -> Weights:
    """The same tensors with each expert by its own name, as files of Mixtral and Qwen3Moe have them."""
    folder = "block_sparse_moe" if model_type == "mixtral" else "mlp"
    gate, up, down = HUB_EXPERTS[folder]
    found: Weights = {}
    for name, tensor in theirs.items():
        block, _, part = name.partition(".mlp.experts.")
        if not part:
            found[name.replace(".mlp.gate.", f".{folder}.gate.")] = tensor
            continue
        for e, expert in enumerate(tensor):
            half = len(expert) // 2
            pieces = {gate: expert[:half], up: expert[half:]} if part == "gate_up_proj" else {down: expert}
            for kind, piece in pieces.items():
                found[f"{block}.{folder}.experts.{e}.{kind}.weight"] = _contiguous(piece)
    return found


def from_theirs(
    architecture: Architecture, config: ModelConfig, vocab_size: int, weights: Weights, interleaved: bool = True
) -> Weights:
    """Our tensors, fp32, from those of the twin or of a file of the hub.

    Args:
        interleaved: of latent attention, neighbouring rows are rotated together.

    Raises:
        BadInput: a tensor that is missing, unknown, or of another size; it is named.
    """
    theirs = _in_memory(architecture, config, weights)
    pieces = list(_pieces(architecture, config))
    _check_tensors(architecture, config, vocab_size, pieces, theirs)
    if architecture.latent and interleaved:
        theirs = {name: _rotary_rows(config, name, tensor, neighbours=False) for name, tensor in theirs.items()}
    if architecture.is_gemma:
        theirs = {name: tensor + 1 if _is_norm(name) else tensor for name, tensor in theirs.items()}
        _scale_embedding(theirs, config.hidden_size**0.5, config.tie_embeddings)
    ours = {}
    for piece in pieces:
        joined = theirs.pop(piece.their)
        parts = (joined.T if piece.transposed else joined).chunk(len(piece.ours), piece.axis)
        ours.update({name: part.contiguous() for name, part in zip(piece.ours, parts, strict=True)})
    for name in ("embedding.weight", "head.weight"):
        if name in ours:
            padded = ours[name].new_zeros(padded_vocabulary(vocab_size), config.hidden_size)
            padded[:vocab_size] = ours[name]
            ours[name] = padded
    for layer in filter(config.has_experts, range(config.n_layers)):
        ours[f"blocks.{layer}.mlp.load"] = ours["embedding.weight"].new_full((config.n_experts,), 1 / config.n_experts)
    return ours


def _check_tensors(
    architecture: Architecture, config: ModelConfig, vocab_size: int, pieces: Sequence[Piece], theirs: Weights
) -> None:
    """Every tensor is there, none besides, and each has the size that the config gives it."""
    if wrong := sorted({piece.their for piece in pieces} ^ set(theirs)):
        raise BadInput(f"model.safetensors: {wrong[0]} is missing or has no place in {architecture.class_name}")
    sizes = _sizes(config, vocab_size)
    for piece in pieces:
        each = [_size(sizes, config, name) for name in piece.ours]
        wanted = [*each[0]]
        wanted[piece.axis] = sum(size[piece.axis] for size in each)
        found = list(theirs[piece.their].shape)
        wanted = wanted[::-1] if piece.transposed else wanted
        if "position_embedding" in piece.ours[0]:  # as many as the file has; the params say how many are used
            wanted[0] = max(1, *found[:1], 1)
        if found != wanted:
            raise BadInput(f"model.safetensors: {piece.their} is {found}; by config.json it is {wanted}")


def _sizes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The sizes of our tensors, by their names behind the layer, but for norms of the residual stream."""
    width, inner, expert = config.hidden_size, config.width_of_mlp, config.width_of_expert
    heads, head, latent = config.n_heads, config.width_of_head, "mla" in config.kinds
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries, keys = heads * head, config.n_kv_heads * head
    matrices = {
        **dict.fromkeys(("embedding", "head"), (vocab_size, width)),
        "attention.query": (queries, width),
        **dict.fromkeys(("attention.key", "attention.value"), (keys, width)),
        "attention.output": (width, heads * value if latent else queries),
        "attention.query_down": (config.q_lora_rank, width),
        "attention.query_up": (heads * (nope + rope), config.q_lora_rank or width),
        "attention.key_value_down": (config.kv_lora_rank + rope, width),
        "attention.key_value_up": (heads * (nope + value), config.kv_lora_rank),
        **dict.fromkeys(("mlp.gate", "mlp.up"), (inner, width)),
        "mlp.down": (width, inner),
        "mlp.router": (config.n_experts, width),
    }
    whole = config.qk_norm_scope == "full"
    return {
        "position_embedding.weight": (0, width),
        **{f"{name}.weight": size for name, size in matrices.items()},
        **{f"{name}.bias": size[:1] for name, size in matrices.items()},
        "attention.query_norm.weight": (config.q_lora_rank if latent else queries if whole else head,),
        "attention.key_norm.weight": (keys if whole else head,),
        "attention.key_value_norm.weight": (config.kv_lora_rank,),
        **dict.fromkeys(("mlp.gate", "mlp.up"), (config.n_experts, expert, width)),
        "mlp.down": (config.n_experts, width, expert),
    }


def _size(sizes: Mapping[str, tuple[int, ...]], config: ModelConfig, our_name: str) -> tuple[int, ...]:
    return sizes.get(re.sub(r"^blocks\.\d+\.", "", our_name), (config.hidden_size,))


def _pieces(architecture: Architecture, config: ModelConfig) -> Iterator[Piece]:
    """Every tensor of the twin."""
    norms = ["weight", "bias"] if architecture.norm == "layernorm" else ["weight"]
    matrices = ["weight", "bias"] if config.bias else ["weight"]
    yield Piece(_embedding(architecture), ("embedding.weight",))
    if architecture.positions == "learned":
        yield Piece("transformer.wpe.weight", ("position_embedding.weight",))
    for layer in range(config.n_layers):
        our, their = f"blocks.{layer}.", f"{_block(architecture)}{layer}."
        for our_norm, their_norm in _norms(architecture, config).items():
            for kind in norms:
                yield Piece(f"{their}{their_norm}.{kind}", (f"{our}{our_norm}.{kind}",))
        for name, parts in _matrices(architecture, config, layer).items():
            for kind in matrices:
                transposed = architecture.is_gpt2 and kind == "weight"
                ours = tuple(f"{our}{part}.{kind}" for part in parts)
                yield Piece(f"{their}{name}.{kind}", ours, transposed=transposed)
        if config.has_experts(layer):
            yield Piece(f"{their}mlp.gate.weight", (f"{our}mlp.router.weight",))
            yield Piece(f"{their}mlp.experts.gate_up_proj", (f"{our}mlp.gate", f"{our}mlp.up"), axis=1)
            yield Piece(f"{their}mlp.experts.down_proj", (f"{our}mlp.down",))
    for kind in norms:
        final = "transformer.ln_f" if architecture.is_gpt2 else "model.norm"
        yield Piece(f"{final}.{kind}", (f"final_norm.{kind}",))
    if not config.tie_embeddings:
        yield Piece("lm_head.weight", ("head.weight",))


def _block(architecture: Architecture) -> str:
    return "transformer.h." if architecture.is_gpt2 else "model.layers."


def _embedding(architecture: Architecture) -> str:
    return "transformer.wte.weight" if architecture.is_gpt2 else "model.embed_tokens.weight"


def _norms(architecture: Architecture, config: ModelConfig) -> Mapping[str, str]:
    """Our names of the norms of a block, and theirs."""
    if architecture.is_gpt2:
        return GPT2_NORMS
    beside = BOTH if config.pre_norm and config.post_norm else PRE if config.pre_norm else POST
    if architecture.latent:
        query = {"attention.query_norm": "self_attn.q_a_layernorm"} if config.q_lora_rank else {}
        return {**beside, **query, "attention.key_value_norm": "self_attn.kv_a_layernorm"}
    return {**beside, **(QK_NORMS if config.qk_norm else {})}


def _matrices(architecture: Architecture, config: ModelConfig, layer: int) -> Mapping[str, tuple[str, ...]]:
    """Their names of the matrices of a block, and ours."""
    if architecture.is_gpt2:
        return GPT2_MATRICES
    mlp = {} if config.has_experts(layer) else MLP
    if architecture.latent:
        return {**LATENT, **(LATENT_QUERY if config.q_lora_rank else LATENT_DIRECT_QUERY), **mlp}
    return {**ATTENTION, **mlp}


def _plain(architecture: Architecture, config: ModelConfig, weights: Weights) -> Weights:
    """Ours with queries, keys and values apart, gains of one where there are none, and no state of routers."""
    ours = {name: tensor for name, tensor in weights.items() if not name.endswith(".mlp.load")}
    head = config.width_of_head
    widths = {"query": config.n_heads * head, "key": config.n_kv_heads * head, "value": config.n_kv_heads * head}
    for name in [name for name in ours if ".query_key_value." in name]:
        fused, first = ours.pop(name), 0
        for part, width in widths.items():
            ours[name.replace("query_key_value", part)] = fused[first : first + width]
            first += width
    if architecture.qk_norm and not config.qk_norm_gain:
        like = ours["final_norm.weight"]
        for layer in range(config.n_layers):
            for part in ("query", "key"):
                width = head if architecture.qk_norm == "head" else widths[part]
                gains = _library(like).ones(width, dtype=like.dtype)
                ours[f"blocks.{layer}.attention.{part}_norm.weight"] = gains
    return ours


def _in_memory(architecture: Architecture, config: ModelConfig, weights: Weights) -> Weights:
    """A file's tensors as transformers has them in memory: fp32, full names, experts joined, head once."""
    first = _block(architecture).split(".")[0] + "."
    theirs = {
        name if name.startswith((first, "lm_head.")) else first + name: tensor.float()
        for name, tensor in weights.items()
        if not NO_WEIGHTS.search(name)
    }
    if config.tie_embeddings:
        theirs.pop("lm_head.weight", None)
    for layer in filter(config.has_experts, range(config.n_layers)):
        _join_experts(theirs, f"{_block(architecture)}{layer}", config.n_experts)
    return theirs


def _join_experts(theirs: Weights, block: str, n_experts: int) -> None:
    for folder, names in HUB_EXPERTS.items():
        if f"{block}.{folder}.experts.0.{names[0]}.weight" not in theirs:
            continue
        gate, up, down = ([f"{block}.{folder}.experts.{e}.{name}.weight" for e in range(n_experts)] for name in names)
        if missing := [name for name in (*gate, *up, *down) if name not in theirs]:
            raise BadInput(f"model.safetensors: {missing[0]} is missing, of {n_experts} experts")
        both = _stack(theirs, [*gate, *up])
        theirs[f"{block}.mlp.experts.gate_up_proj"] = _library(both).concatenate(
            [both[:n_experts], both[n_experts:]], 1
        )
        theirs[f"{block}.mlp.experts.down_proj"] = _stack(theirs, down)
    if (router := f"{block}.block_sparse_moe.gate.weight") in theirs:
        theirs[f"{block}.mlp.gate.weight"] = theirs.pop(router)


def _stack(theirs: Weights, names: Sequence[str]) -> Any:
    tensors = [theirs.pop(name) for name in names]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            raise BadInput(
                f"model.safetensors: {name} is {list(tensor.shape)}, the first expert's {list(tensors[0].shape)}"
            )
    return _library(tensors[0]).stack(tensors)


def _is_norm(their_name: str) -> bool:
    return their_name.endswith("norm.weight")


def _scale_embedding(theirs: Weights, factor: float, tied: bool) -> None:
    """Takes the Gemmas' sqrt(hidden_size) out of the embedding or puts it back, gains being true gains."""
    theirs["model.embed_tokens.weight"] = theirs["model.embed_tokens.weight"] * factor
    if tied:
        theirs["model.norm.weight"] = theirs["model.norm.weight"] / factor


def _library(array: Any) -> Any:
    """torch or numpy, whichever the array is of. Both have concatenate, stack and ones."""
    return sys.modules[type(array).__module__.split(".")[0]]


def _contiguous(array: Any) -> Any:
    return array.contiguous() if hasattr(array, "contiguous") else _library(array).ascontiguousarray(array)
