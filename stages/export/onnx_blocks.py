"""The nodes of one block of the decoder: norms, attentions, MLPs, experts, as the files of model/ compute them.

Each function adds nodes to a graph and returns the name of the result. Linear layers are stored as [inputs, outputs],
the order in which ONNX multiplies. Queries of one group of heads meet their keys by broadcasting:

    [B, K, G, T, D] x [B, K, 1, D, S]    G = 4 query heads a key head: the keys are stored once, and read four times

Shapes: B sequences, T new tokens, S all tokens, H query heads, K key heads, G = H / K, D width of a head, C hidden,
N and R widths of a latent query without and with rotation, L of the latent, M = B * T, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model.config import GATED, ModelConfig
from stages.export.onnx_graph import Graph

Weights = Mapping[str, np.ndarray]
Rotations = Mapping[int, tuple[str, str]]


def linear(graph: Graph, weights: Weights, name: str, x: str) -> str:
    with graph.within(name.split(".")[-1]):
        y = graph("MatMul", x, graph.weight(f"{name}.weight", weights[f"{name}.weight"].T))
        bias = f"{name}.bias"
        return graph("Add", y, graph.weight(bias, weights[bias])) if bias in weights else y


def rms_norm(graph: Graph, x: str, eps: float, gain: str | None) -> str:
    mean = graph("ReduceMean", graph("Pow", x, graph.number(2.0)), graph.numbers(-1))
    y = graph("Div", x, graph("Sqrt", graph("Add", mean, graph.number(eps))))
    return y if gain is None else graph("Mul", y, gain)


def norm(graph: Graph, weights: Weights, config: ModelConfig, name: str, x: str) -> str:
    """The norm of the residual stream or of a branch, as model/norm.py."""
    with graph.within(name.split(".")[-1]):
        gain = graph.weight(f"{name}.weight", weights[f"{name}.weight"])
        if config.norm == "rmsnorm":
            return rms_norm(graph, x, config.norm_eps, gain)
        bias = graph.weight(f"{name}.bias", weights[f"{name}.bias"])
        if config.norm == "layernorm":
            return graph("LayerNormalization", x, gain, bias, axis=-1, epsilon=config.norm_eps)
        squashed = graph("Tanh", graph("Mul", x, graph.weight(f"{name}.alpha", weights[f"{name}.alpha"])))
        return graph("Add", graph("Mul", squashed, gain), bias)


def rotate(graph: Graph, x_BHTD: str, cosine: str, sine: str) -> str:
    """As model.rotary.rotate: channel i and channel i + D/2 are a pair."""
    with graph.within("rotate"):
        left, right = graph("Split", x_BHTD, outputs=2, axis=-1, num_outputs=2)
        turned = graph("Concat", graph("Neg", right), left, axis=-1)
        return graph("Add", graph("Mul", x_BHTD, cosine), graph("Mul", turned, sine))


def activation(graph: Graph, kind: str, x: str) -> str:
    if kind == "swiglu":
        return graph("Mul", x, graph("Sigmoid", x))
    if kind == "relu2":
        positive = graph("Relu", x)
        return graph("Mul", positive, positive)
    return graph("Gelu", x, approximate="none" if kind == "geglu" else "tanh")


class Block:
    """The nodes of one block, whose tensors begin with `name`, such as blocks.0."""

    def __init__(self, graph: Graph, weights: Weights, config: ModelConfig, name: str):
        self.graph, self.weights, self.config, self.name = graph, weights, config, name

    def norm(self, part: str, x: str) -> str:
        """A norm where the config has one, else x itself."""
        wanted = self.config.post_norm if "post" in part else self.config.pre_norm
        return norm(self.graph, self.weights, self.config, f"{self.name}.{part}", x) if wanted else x

    def linear(self, part: str, x: str) -> str:
        return linear(self.graph, self.weights, f"{self.name}.{part}", x)

    def heads(self, x: str, width: int) -> str:
        """[B, T, heads * width] to [B, heads, T, width]."""
        split = self.graph("Reshape", x, self.graph.numbers(0, 0, -1, width))
        return self.graph("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, x_BTC: str, rotations: Rotations, mask: str, memory: list[str]) -> tuple[str, list[str]]:
        """The branch, as model/attention.py; and keys and values of past and new tokens."""
        graph, config = self.graph, self.config
        K, D = config.n_kv_heads, config.width_of_head
        with graph.within("attention"):
            q, k, v = self.queries_keys_values(x_BTC)
            if rotations:
                q, k = (rotate(graph, y, *rotations[D]) for y in (q, k))
            keys = graph("Concat", memory[0], k, axis=2)
            values = graph("Concat", memory[1], v, axis=2)
            q = graph("Mul", q, graph.number(D**-0.5))
            q = graph("Reshape", q, graph.numbers(0, K, config.n_heads // K, -1, D))
            turned = graph("Unsqueeze", graph("Transpose", keys, perm=[0, 1, 3, 2]), graph.numbers(2))
            scores = graph("Add", graph("MatMul", q, turned), graph("Unsqueeze", mask, graph.numbers(2)))
            p = graph("Softmax", scores, axis=-1)
            y = graph("MatMul", p, graph("Unsqueeze", values, graph.numbers(2)))
            y = graph("Reshape", graph("Transpose", y, perm=[0, 3, 1, 2, 4]), graph.numbers(0, 0, config.n_heads * D))
            return self.linear("attention.output", y), [keys, values]

    def queries_keys_values(self, x_BTC: str) -> list[str]:
        """[B, H, T, D] and twice [B, K, T, D], normed and not yet rotated."""
        config, D = self.config, self.config.width_of_head
        if config.fused_qkv:
            fused = self.linear("attention.query_key_value", x_BTC)
            widths = self.graph.numbers(*(n * D for n in (config.n_heads, config.n_kv_heads, config.n_kv_heads)))
            made = self.graph("Split", fused, widths, outputs=3, axis=-1)
        else:
            made = [self.linear(f"attention.{part}", x_BTC) for part in ("query", "key", "value")]
        whole = config.qk_norm and config.qk_norm_scope == "full"
        if whole:
            made[:2] = [self.qk_norm(part, y) for part, y in zip(("query", "key"), made, strict=False)]
        made = [self.heads(y, D) for y in made]
        if config.qk_norm and not whole:
            made[:2] = [self.qk_norm(part, y) for part, y in zip(("query", "key"), made, strict=False)]
        return made

    def qk_norm(self, part: str, x: str) -> str:
        name = f"{self.name}.attention.{part}_norm.weight"
        with self.graph.within(f"{part}_norm"):
            gain = self.graph.weight(name, self.weights[name]) if name in self.weights else None
            return rms_norm(self.graph, x, self.config.norm_eps, gain)

    def latent(self, x_BTC: str, rotations: Rotations, mask: str, memory: list[str]) -> tuple[str, list[str]]:
        """The branch, as LatentAttention.absorbed; and latents and rotated keys of past and new tokens."""
        graph, config = self.graph, self.config
        N, R, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        with graph.within("attention"):
            q_nope, q_pe = graph("Split", self.latent_queries(x_BTC), graph.numbers(N, R), outputs=2, axis=-1)
            down = self.linear("attention.key_value_down", x_BTC)
            c, k_pe = graph("Split", down, graph.numbers(config.kv_lora_rank, R), outputs=2, axis=-1)
            c = self.qk_norm("key_value", c)
            if rotations:
                q_pe = rotate(graph, q_pe, *rotations[R])
                k_pe = graph("Unsqueeze", k_pe, graph.numbers(1))
                k_pe = graph("Squeeze", rotate(graph, k_pe, *rotations[R]), graph.numbers(1))
            c = graph("Concat", memory[0], c, axis=1)
            k_pe = graph("Concat", memory[1], k_pe, axis=1)
            name = f"{self.name}.attention.key_value_up"
            up_HDL = self.weights[f"{name}.weight"].reshape(config.n_heads, N + V, config.kv_lora_rank)
            q_BHTL = graph("MatMul", q_nope, graph.weight(f"{name}.keys", up_HDL[:, :N]))
            turned = [graph("Unsqueeze", graph("Transpose", y, perm=[0, 2, 1]), graph.numbers(1)) for y in (c, k_pe)]
            scores = graph("Add", graph("MatMul", q_BHTL, turned[0]), graph("MatMul", q_pe, turned[1]))
            scores = graph("Add", graph("Mul", scores, graph.number((N + R) ** -0.5)), mask)
            mean = graph("MatMul", graph("Softmax", scores, axis=-1), graph("Unsqueeze", c, graph.numbers(1)))
            y = graph("MatMul", mean, graph.weight(f"{name}.values", up_HDL[:, N:].transpose(0, 2, 1)))
            y = graph("Reshape", graph("Transpose", y, perm=[0, 2, 1, 3]), graph.numbers(0, 0, config.n_heads * V))
            return self.linear("attention.output", y), [c, k_pe]

    def latent_queries(self, x_BTC: str) -> str:
        """[B, H, T, N + R]."""
        config = self.config
        if config.q_lora_rank:
            x_BTC = self.qk_norm("query", self.linear("attention.query_down", x_BTC))
        return self.heads(self.linear("attention.query_up", x_BTC), config.qk_nope_head_dim + config.qk_rope_head_dim)

    def mlp(self, x_BTC: str, has_experts: bool) -> str:
        with self.graph.within("mlp"):
            return self.experts(x_BTC) if has_experts else self.plain_mlp("mlp", x_BTC)

    def plain_mlp(self, part: str, x: str) -> str:
        graph, kind = self.graph, self.config.mlp
        if kind in GATED:
            inner = activation(graph, kind, self.linear(f"{part}.gate", x))
            return self.linear(f"{part}.down", graph("Mul", inner, self.linear(f"{part}.up", x)))
        return self.linear(f"{part}.down", activation(graph, kind, self.linear(f"{part}.up", x)))

    def experts(self, x_BTC: str) -> str:
        """As model/experts.py: each expert multiplies the tokens that chose it alone, and no others."""
        graph, config = self.graph, self.config
        x_MC = graph("Reshape", x_BTC, graph.numbers(-1, config.hidden_size))
        logits_ME = self.linear("mlp.router", x_MC)
        top, chosen = graph("TopK", logits_ME, graph.numbers(config.experts_per_token), outputs=2, axis=-1)
        weight = graph("Softmax", top, axis=-1)
        y_MC = graph("Mul", x_MC, graph.number(0.0))
        for e in range(config.n_experts):
            with graph.within(f"expert_{e}"):
                mine = graph("Equal", chosen, graph.integer(e))
                pair = graph("NonZero", mine)  # rows and places among the chosen, [2, m]
                row = graph("Gather", pair, graph.integer(0), axis=0)
                share = graph("GatherND", weight, graph("Transpose", pair, perm=[1, 0]))
                branch = self.expert(e, graph("Gather", x_MC, row, axis=0))
                branch = graph("Mul", branch, graph("Unsqueeze", share, graph.numbers(1)))
                y_MC = graph("ScatterND", y_MC, graph("Unsqueeze", row, graph.numbers(1)), branch, reduction="add")
        y_BTC = graph("Reshape", y_MC, graph("Shape", x_BTC))
        return graph("Add", y_BTC, self.plain_mlp("mlp.shared", x_BTC)) if config.n_shared_experts else y_BTC

    def expert(self, number: int, x_MC: str) -> str:
        graph = self.graph

        def product(part: str, x: str) -> str:
            name = f"{self.name}.mlp.{part}"
            return graph("MatMul", x, graph.weight(f"{name}.{number}", self.weights[name][number].T))

        inner = graph("Mul", activation(graph, self.config.mlp, product("gate", x_MC)), product("up", x_MC))
        return product("down", inner)
