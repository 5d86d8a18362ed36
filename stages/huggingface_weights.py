"""Tensors of Decoder.state_dict() <-> those of transformers, for stages/huggingface_twins.py.

Mostly other names (huggingface_names.py), where a `Piece` is one tensor of theirs and what of ours it is made of.

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
from collections.abc import Sequence
from typing import Any

from model.config import ModelConfig, padded_vocabulary
from stages.errors import BadInput
from stages.huggingface_names import Piece, block_of, embedding_of, pieces_of, size_of, sizes_of
from stages.huggingface_twins import Architecture

Weights = dict[str, Any]  # tensors of torch, or arrays of numpy

# Names of one expert's gate, up and down in the files of Mixtral and of Qwen3Moe.
HUB_EXPERTS = {"block_sparse_moe": ("w1", "w3", "w2"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NO_WEIGHTS = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")  # masks, frequencies


def to_theirs(architecture: Architecture, config: ModelConfig, vocab_size: int, weights: Weights) -> Weights:
    """The tensors of the twin, contiguous."""
    ours = _plain(architecture, config, weights)
    theirs = {}
    for piece in pieces_of(architecture, config):
        parts = [ours.pop(name) for name in piece.ours]
        joined = parts[0] if len(parts) == 1 else _library(parts[0]).concatenate(parts, piece.axis)
        theirs[piece.their] = joined.T if piece.transposed else joined
    assert not ours, f"{next(iter(ours))} has no place in {architecture.class_name}"
    for name in (embedding_of(architecture), "lm_head.weight"):
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
    pieces = list(pieces_of(architecture, config))
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
    sizes = sizes_of(config, vocab_size)
    for piece in pieces:
        each = [size_of(sizes, config, name) for name in piece.ours]
        wanted = [*each[0]]
        wanted[piece.axis] = sum(size[piece.axis] for size in each)
        found = list(theirs[piece.their].shape)
        wanted = wanted[::-1] if piece.transposed else wanted
        if "position_embedding" in piece.ours[0]:  # as many as the file has; the params say how many are used
            wanted[0] = max(1, *found[:1], 1)
        if found != wanted:
            raise BadInput(f"model.safetensors: {piece.their} is {found}; by config.json it is {wanted}")


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
    first = block_of(architecture).split(".")[0] + "."
    theirs = {
        name if name.startswith((first, "lm_head.")) else first + name: tensor.float()
        for name, tensor in weights.items()
        if not NO_WEIGHTS.search(name)
    }
    if config.tie_embeddings:
        theirs.pop("lm_head.weight", None)
    for layer in filter(config.has_experts, range(config.n_layers)):
        _join_experts(theirs, f"{block_of(architecture)}{layer}", config.n_experts)
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
