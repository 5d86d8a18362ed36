"""One decoder in training by each side: ours, litgpt, transformers and torchtitan, of equal shape and equal weights.

A side is put together as its own training code does it, and where that has two ways, in the faster one:

    ours          the parts of stages/train: prepare, micro_step, Optimizers, and the step of the loop itself
    litgpt        its GPT, compiled whole, bf16-mixed; torch's cross-entropy compiled, where its own of chunks is eager
    transformers  the twin of our decoder (Llama, Qwen3, GPT-2), attention by sdpa, compiled whole with its loss
    torchtitan    its Llama 3, each block and the loss compiled; its own converter to torchao's FP8; autocast, which
                  is what its trainer does on one device

All weights are ours to begin with: a first loss that differs is another function. Embedding and head are tied in
all of them; torchtitan's Llama has no option for it, so the head is given the embedding as its Qwen 3 does it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.decoder import Decoder
from stages.errors import BadInput
from stages.execution import Execution
from stages.huggingface import to_huggingface, twin_of
from stages.train.batches import MicroBatch, StepBatches, to_device
from stages.train.loop import launch_step
from stages.train.micro_step import GraphedMicroStep
from stages.train.objective import CausalObjective, autocast
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams
from stages.train.prepare import exchange, micro_step, prepare, wants_compile
from stages.train.ranks import Ranks
from stages.train.schedule import lr_multiplier
from stages.train.sharding import is_sharded

Loss = Callable[[Tensor, Tensor], Tensor]  # inputs and labels [B, T] -> the sum of nats


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a side is built for."""

    config: ModelConfig
    vocab_size: int
    length: int
    rows: int
    params: TrainParams
    device: str
    compiled: bool | str = "auto"
    backend: str = "auto"
    activation_checkpointing: str = "none"
    packed: bool = False


class Side(Protocol):
    def step(self, batches: Sequence[MicroBatch], number: int) -> Tensor:
        """One optimizer step; its mean loss, on the device."""


def first_weights(config: ModelConfig, setting: Setting) -> Decoder:
    """Our decoder with the weights that every side begins with."""
    model = Decoder(config, setting.vocab_size, setting.length)
    model.initialise(torch.Generator().manual_seed(0))
    return model


class PlainRows(CausalObjective):
    """Rows of one document each: what peers train on. Without segments attention needs no mask."""

    def forward(
        self, inputs_BT: Tensor, labels_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor,
        n_documents: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return self.of_hidden(self.model.hidden(inputs_BT, self.model.context(inputs_BT)), labels_BT)


class Ours:
    """`launch_step` of the training loop over a run that has what it reads."""

    def __init__(
        self, setting: Setting, ranks: Ranks | None = None, sharding: str = "none", graphs: bool | str = "auto"
    ):
        execution = Execution(
            compile=setting.compiled, micro_batch=setting.rows, attention_backend=setting.backend, sharding=sharding,
            activation_checkpointing=setting.activation_checkpointing, cuda_graphs=graphs,
        )  # fmt: skip
        ranks = ranks or Ranks(0, 1, setting.device)
        sharded = is_sharded(execution, ranks)
        model = first_weights(setting.config, setting).train()
        if not sharded:
            model.to(ranks.device)
        model.attention_backend = setting.backend
        objective = prepare(model, setting.params, execution, ranks)
        if not setting.packed:
            objective.__class__ = PlainRows
        rows_per_step = setting.params.batch_tokens // setting.length
        step = micro_step(objective, model, setting.params, execution, ranks, setting.rows, rows_per_step)
        self.run: Any = types.SimpleNamespace(
            model=model, objective=objective, micro_step=step, params=setting.params, ranks=ranks, scaler=None,
            sharded=sharded, average=None, experts=[], exchange=exchange(model, step, execution, ranks),
            optimizers=Optimizers(model, setting.params, wants_compile(execution, ranks)),
        )  # fmt: skip
        self.run.keeps_gradients = self.run.exchange.keeps or isinstance(step, GraphedMicroStep)

    def step(self, batches: Sequence[MicroBatch], number: int) -> Tensor:
        tokens = self.run.ranks.world * sum(batch.labels.numel() for batch in batches)
        of_step = StepBatches(list(batches), tokens)
        ready: Any = types.SimpleNamespace(next=lambda: of_step)
        return launch_step(self.run, [], ready, number).figures[0]


class Peer:
    """The plain step that all peers share."""

    def __init__(self, setting: Setting, model: nn.Module, loss: Loss):
        self.setting, self.model, self.loss = setting, model, loss
        params = setting.params
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=params.lr, betas=(params.beta1, params.beta2), eps=params.adam_eps,
            weight_decay=params.weight_decay, fused=True,
        )  # fmt: skip

    def step(self, batches: Sequence[MicroBatch], number: int) -> Tensor:
        setting = self.setting
        tokens = sum(batch.labels.numel() for batch in batches)
        nats = torch.zeros((), dtype=torch.float64, device=setting.device)
        for batch in batches:
            there = to_device(batch, setting.device)
            with autocast(setting.device, setting.params.precision):
                loss = self.loss(there.inputs, there.labels)
            (loss / tokens).backward()
            nats += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), setting.params.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = setting.params.lr * lr_multiplier(number, setting.params)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return nats / tokens


def compiles(setting: Setting) -> bool:
    return setting.device == "cuda" if setting.compiled == "auto" else bool(setting.compiled)


def nats_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")


def build_transformers(setting: Setting) -> Peer:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = setting.config
    if twin_of(config) is None:  # its only decoder without a gate is GPT-2
        config = dataclasses.replace(
            config, norm="layernorm", positions="learned", bias=True, qk_norm=False, n_kv_heads=config.n_heads
        )
    weights = {name: tensor.detach() for name, tensor in first_weights(config, setting).state_dict().items()}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    settings, theirs = to_huggingface(weights, config, setting.vocab_size, setting.length, ids)
    settings = {key: value for key, value in settings.items() if key not in ("architectures", "dtype", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**settings, "use_cache": False}), attn_implementation="sdpa", dtype=torch.float32
    )
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # GPT-2's config drops a tenth by default
            module.p = 0.0
    model.to(setting.device).train()
    called = torch.compile(model, dynamic=False) if compiles(setting) else model

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return called(input_ids=inputs, labels=labels, shift_labels=labels, num_items_in_batch=1).loss

    return Peer(setting, model, loss)


def build_litgpt(setting: Setting) -> Peer:
    from litgpt.config import Config
    from litgpt.model import GPT

    c = setting.config
    if c.mlp not in ("swiglu", "gelu"):
        raise BadInput(f"litgpt has no MLP {c.mlp}")
    config = Config(
        name="equal", block_size=setting.length, n_layer=c.n_layers, n_embd=c.hidden_size, n_head=c.n_heads,
        n_query_groups=c.n_kv_heads, vocab_size=setting.vocab_size, padded_vocab_size=setting.vocab_size,
        norm_class_name="RMSNorm", norm_eps=c.norm_eps, norm_qk=c.qk_norm, rotary_percentage=1.0,
        rope_base=int(c.rope_theta), parallel_residual=False, bias=False, intermediate_size=c.width_of_mlp,
        mlp_class_name="LLaMAMLP" if c.mlp == "swiglu" else "GptNeoxMLP", gelu_approximate="tanh",
    )  # fmt: skip
    model = GPT(config)
    model.load_state_dict(litgpt_weights(first_weights(c, setting), c))
    model.lm_head.weight = model.transformer.wte.weight  # train.tie_embeddings
    model.to(setting.device).train()
    if not compiles(setting):
        return Peer(setting, model, lambda inputs, labels: nats_of(model(inputs), labels))
    called, cross_entropy = torch.compile(model, dynamic=False), torch.compile(nats_of, dynamic=False)
    return Peer(setting, model, lambda inputs, labels: cross_entropy(called(inputs), labels))


def litgpt_weights(ours: Decoder, config: ModelConfig) -> dict[str, Tensor]:
    w = {name: tensor.detach() for name, tensor in ours.state_dict().items()}
    embedding = w["embedding.weight"][: ours.vocab_size]
    found = {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    found["transformer.ln_f.weight"] = w["final_norm.weight"]
    mlp = {"fc_1": "gate", "fc_2": "up", "proj": "down"} if config.mlp == "swiglu" else {"fc": "up", "proj": "down"}
    for layer in range(config.n_layers):
        a, b = f"blocks.{layer}.", f"transformer.h.{layer}."
        found[b + "norm_1.weight"] = w[a + "attention_norm.weight"]
        found[b + "norm_2.weight"] = w[a + "mlp_norm.weight"]
        found[b + "attn.qkv.weight"] = torch.cat([w[f"{a}attention.{n}.weight"] for n in ("query", "key", "value")])
        found[b + "attn.proj.weight"] = w[a + "attention.output.weight"]
        if config.qk_norm:
            found[b + "attn.norm_q.weight"] = w[a + "attention.query_norm.weight"]
            found[b + "attn.norm_k.weight"] = w[a + "attention.key_norm.weight"]
        found.update({f"{b}mlp.{their}.weight": w[f"{a}mlp.{name}.weight"] for their, name in mlp.items()})
    return found


def build_torchtitan(setting: Setting) -> Peer:
    from torchtitan.components.loss import build_cross_entropy_loss
    from torchtitan.config import JobConfig
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs
    from torchtitan.models.llama3.infra.parallelize import apply_compile
    from torchtitan.models.llama3.model.args import RoPEScalingArgs

    c = setting.config
    if c.mlp != "swiglu" or c.qk_norm:
        raise BadInput("torchtitan's Llama has SwiGLU alone and no QK-norm")
    arguments = TransformerModelArgs(
        dim=c.hidden_size, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_kv_heads, norm_eps=c.norm_eps,
        vocab_size=setting.vocab_size, multiple_of=64, rope_theta=c.rope_theta, max_seq_len=setting.length,
        rope_scaling_args=RoPEScalingArgs(scaling_factor=1.0),
    )  # fmt: skip
    model = Transformer(arguments)
    model.load_state_dict(torchtitan_weights(first_weights(c, setting), c))
    model.output.weight = model.tok_embeddings.weight
    model.to(setting.device).train()
    job = JobConfig()
    job.compile.enable = compiles(setting)
    if setting.params.precision == "fp8":
        convert_by_torchtitan(model, job, setting.device)
    if job.compile.enable:
        apply_compile(model, job.compile)
    cross_entropy = build_cross_entropy_loss(job)
    return Peer(setting, model, lambda inputs, labels: cross_entropy(model(inputs), labels))


def convert_by_torchtitan(model: nn.Module, job: Any, device: str) -> None:
    """Linear layers but the head multiply in FP8 with one scale a tensor, which on Hopper is its fastest."""
    from torchtitan.components.quantization.float8 import Float8LinearConverter
    from torchtitan.distributed import ParallelDims

    job.quantize.linear.float8.filter_fqns = ["output"]
    job.quantize.linear.float8.emulate = device == "cpu"
    one = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=1)
    Float8LinearConverter(job, one).convert(model)


def torchtitan_weights(ours: Decoder, config: ModelConfig) -> dict[str, Tensor]:
    """Its rotation turns neighbours 2i and 2i + 1, ours i and i + width / 2: rows of queries and keys move."""
    w = {name: tensor.detach() for name, tensor in ours.state_dict().items()}
    width = config.width_of_head

    def interleaved(matrix: Tensor) -> Tensor:
        return matrix.view(-1, 2, width // 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)

    embedding = w["embedding.weight"][: ours.vocab_size]
    found = {"tok_embeddings.weight": embedding, "output.weight": embedding, "norm.weight": w["final_norm.weight"]}
    names = {
        "attention.wv": "attention.value", "attention.wo": "attention.output", "feed_forward.w1": "mlp.gate",
        "feed_forward.w2": "mlp.down", "feed_forward.w3": "mlp.up", "attention_norm": "attention_norm",
        "ffn_norm": "mlp_norm",
    }  # fmt: skip
    for layer in range(config.n_layers):
        a, b = f"blocks.{layer}.", f"layers.{layer}."
        found.update({f"{b}{their}.weight": w[f"{a}{name}.weight"] for their, name in names.items()})
        found[b + "attention.wq.weight"] = interleaved(w[a + "attention.query.weight"])
        found[b + "attention.wk.weight"] = interleaved(w[a + "attention.key.weight"])
    return found


SIDES: dict[str, Callable[[Setting], Side]] = {
    "ours": Ours,
    "litgpt": build_litgpt,
    "transformers": build_transformers,
    "torchtitan": build_torchtitan,
}
