"""A decoder as an ONNX graph, with caches as inputs and outputs, in the convention of Hugging Face's exports.

    input_ids                    int64 [B, T]      new tokens
    attention_mask               int64 [B, P + T]  1 for a token, 0 for padding, of the past and the new ones
    past_key_values.0.key        [B, K, P, D]      what an earlier call gave out as present; P is 0 at first
    past_key_values.0.value
    logits                       [B, T, V]
    present.0.key, .value        [B, K, P + T, D]

A layer of latent attention (`mla`) has `.latent` [B, P, L] and `.rotated` [B, P, R] instead, and computes in the
absorbed form of model/latent.py. B, T and P are free in every call. Positions are counted from the mask, so padding
on the left does what it does in transformers; windows and sinks are masks over a cache that holds every token.

Example: a prompt of 5 tokens, then one: T = 5, P = 0 gives presents of 5 tokens; T = 1, P = 5 reads them as past.

Shapes: B sequences, T new tokens, S = P + T, H query heads, K key heads, G = H / K, D width of a head, C hidden,
V vocabulary, L and R widths of a latent and of its rotated key, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.config import ModelConfig
from stages.export.onnx_blocks import Block, Weights, norm
from stages.export.onnx_graph import FLOAT, Graph

HIDDEN_SCORE = -1e30  # of a key that a query does not see; finite, so that padding, which sees nothing, is no NaN
FILE = "model.onnx"


class Places(NamedTuple):
    """Names of the position of every query [B, T], and of every key [B, S], -1 for padding."""

    queries: str
    keys: str


def cached(config: ModelConfig) -> list[tuple[str, list[int | str]]]:
    """Names of what each layer remembers, behind `past_key_values.` or `present.`, and shapes up to the tokens' axis
    (None) and behind it."""
    named: list[tuple[str, list[Any]]] = []
    for layer, kind in enumerate(config.kinds):
        if kind == "mla":
            named.append((f"{layer}.latent", ["batch", None, config.kv_lora_rank]))
            named.append((f"{layer}.rotated", ["batch", None, config.qk_rope_head_dim]))
        else:
            named += [
                (f"{layer}.{part}", ["batch", config.n_kv_heads, None, config.width_of_head])
                for part in ("key", "value")
            ]
    return named


def write_onnx(
    path: Path, weights: Weights, config: ModelConfig, vocab_size: int, context_length: int, end_of_text: int
) -> None:
    """Writes the graph.

    Args:
        weights: `Decoder.state_dict()` as arrays.
    """
    from onnx import TensorProto, helper

    graph = Graph()
    past = {name: f"past_key_values.{name}" for name, _ in cached(config)}
    logits, present = decoder(graph, weights, config, vocab_size, past)
    graph.rename(logits, "logits")
    for name, made in present.items():
        graph.rename(made, f"present.{name}")

    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def caches(prefix: str, tokens: str) -> list[Any]:
        return [
            value(f"{prefix}.{name}", TensorProto.FLOAT, [tokens if size is None else size for size in shape])
            for name, shape in cached(config)
        ]

    inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "new"]),
        value("attention_mask", TensorProto.INT64, ["batch", "past_and_new"]),
        *caches("past_key_values", "past"),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["batch", "new", vocab_size]),
        *caches("present", "past_and_new"),
    ]
    metadata = {"context_length": str(context_length), "eos_token_id": str(end_of_text)}
    graph.save(path, inputs, outputs, metadata)


def decoder(
    graph: Graph, weights: Weights, config: ModelConfig, vocab_size: int, past: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The nodes from token ids to logits; names of the logits and of what was remembered."""
    places = places_of(graph)
    embedding = graph.weight("embedding.weight", weights["embedding.weight"][:vocab_size])
    x = graph("Gather", embedding, "input_ids", axis=0)
    if config.positions == "learned":
        table = graph.weight("position_embedding.weight", weights["position_embedding.weight"])
        x = graph("Add", x, graph("Gather", table, places.queries, axis=0))
    elif config.positions == "sinusoidal":
        x = graph("Add", x, sinusoids(graph, places, config.hidden_size))
    rotations = rotations_of(graph, config, places)
    masks = {kind: mask_of(graph, config, kind, places) for kind in dict.fromkeys(config.kinds)}
    present: dict[str, str] = {}
    for layer, kind in enumerate(config.kinds):
        with graph.within(f"blocks.{layer}"):
            block = Block(graph, weights, config, f"blocks.{layer}")
            attend = block.latent if kind == "mla" else block.attention
            memory = [past[name] for name in past if name.startswith(f"{layer}.")]
            branch, made = attend(block.norm("attention_norm", x), rotations, masks[kind], memory)
            present.update(zip((name for name in past if name.startswith(f"{layer}.")), made, strict=True))
            x = graph("Add", x, block.norm("attention_post_norm", branch))
            branch = block.mlp(block.norm("mlp_norm", x), config.has_experts(layer))
            x = graph("Add", x, block.norm("mlp_post_norm", branch))
    return head(graph, weights, config, vocab_size, norm(graph, weights, config, "final_norm", x)), present


def head(graph: Graph, weights: Weights, config: ModelConfig, vocab_size: int, x_BTC: str) -> str:
    with graph.within("head"):
        if config.tie_embeddings:
            matrix = graph("Transpose", "embedding.weight", perm=[1, 0])
        else:
            matrix = graph.weight("head.weight", weights["head.weight"][:vocab_size].T)
        logits = graph("MatMul", x_BTC, matrix)
        if not (cap := config.logit_softcap):
            return logits
        return graph("Mul", graph("Tanh", graph("Div", logits, graph.number(cap))), graph.number(cap))


def places_of(graph: Graph) -> Places:
    """Counts positions in the mask: 0 1 1 1 with two new tokens has keys at -, 0, 1, 2 and queries at 1, 2."""
    with graph.within("places"):
        counted = graph("Sub", graph("CumSum", "attention_mask", graph.integer(1)), graph.integer(1))
        padding = graph("Equal", "attention_mask", graph.integer(0))
        keys = graph("Where", padding, graph.integer(-1), counted)
        start = graph("Neg", graph("Shape", "input_ids", start=1, end=2))
        queries = graph("Slice", keys, start, graph.numbers(np.iinfo(np.int64).max), graph.numbers(1))
        return Places(graph("Max", queries, graph.integer(0)), keys)


def mask_of(graph: Graph, config: ModelConfig, kind: str, places: Places) -> str:
    """What is added to scores, [B, 1, T, S]: 0 where model.context.visible says so."""
    with graph.within(f"mask_{kind}"):
        i = graph("Unsqueeze", places.queries, graph.numbers(1, 3))
        j = graph("Unsqueeze", places.keys, graph.numbers(1, 2))
        seen = graph("And", graph("LessOrEqual", j, i), graph("GreaterOrEqual", j, graph.integer(0)))
        if kind == "swa":
            near = graph("Less", graph("Sub", i, j), graph.integer(config.window))
            near = graph("Or", near, graph("Less", j, graph.integer(config.sink_tokens)))
            seen = graph("And", seen, near)
        return graph("Where", seen, graph.number(0.0), graph.number(HIDDEN_SCORE))


def rotations_of(graph: Graph, config: ModelConfig, places: Places) -> dict[int, tuple[str, str]]:
    """Cosines and sines [B, 1, T, width] by width, as model/rotary.py computes them."""
    if config.positions != "rope":
        return {}
    from model.rotary import frequencies

    widths = {config.qk_rope_head_dim if kind == "mla" else config.width_of_head for kind in config.kinds}
    made = {}
    for width in sorted(widths):
        with graph.within(f"rotation_{width}"):
            frequency, scale = frequencies(config, width)
            position = graph("Cast", graph("Unsqueeze", places.queries, graph.numbers(1, 3)), to=FLOAT)
            angle = graph("Mul", position, graph.weight(f"frequencies.{width}", frequency.numpy()))
            angle = graph("Concat", angle, angle, axis=-1)
            both = [graph(op, angle) for op in ("Cos", "Sin")]
            if scale != 1:
                both = [graph("Mul", part, graph.number(scale)) for part in both]
            made[width] = (both[0], both[1])
    return made


def sinusoids(graph: Graph, places: Places, width: int) -> str:
    """As model.decoder.sinusoids."""
    half = width // 2
    frequency = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / max(half - 1, 1)))
    with graph.within("sinusoids"):
        position = graph("Cast", graph("Unsqueeze", places.queries, graph.numbers(2)), to=FLOAT)
        angle = graph("Mul", position, graph.weight("sinusoids.frequencies", frequency))
        return graph("Concat", graph("Sin", angle), graph("Cos", angle), axis=-1)
