"""Trains every architecture for some steps at equal sizes: tokens/s, achieved TFLOP/s, memory, and the loss.

    python -m benchmarks.architectures --out architectures.json      # one GPU, about 20 s a row for compiling
    python -m benchmarks.architectures --toy                         # the same code in a minute on a CPU

The model is the preset `small` with 12 heads of 64 at T 2,048, 32K tokens a step in bf16, AdamW, blocks
compiled. Rows hold packed documents of a source with structure, so a loss that falls is learning. A speed
counts only if it does. FLOPs are those of model/size.py: windows and experts count what they compute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.attention import packed_places
from model.config import ModelConfig
from model.decoder import Decoder
from model.size import flops_per_token
from stages.train.objective import CausalObjective, autocast, compile_parts
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams

MLA = {"layer_pattern": "mla", "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
ARCHITECTURES: dict[str, dict] = {
    "plain (qk_norm off)": {"qk_norm": False},
    "qk_norm head": {},
    "qk_norm full": {"qk_norm_scope": "full"},
    "post_norm": {"pre_norm": False, "post_norm": True},
    "pre_norm and post_norm": {"post_norm": True},
    "layernorm": {"norm": "layernorm"},
    "dyt": {"norm": "dyt"},
    "4 key heads": {"n_kv_heads": 4},
    "fused_qkv": {"fused_qkv": True},
    "gelu": {"mlp": "gelu"},
    "relu2": {"mlp": "relu2"},
    "geglu": {"mlp": "geglu"},
    "window 256 + 4 sinks": {"layer_pattern": "swa"},
    "window 256": {"layer_pattern": "swa", "sink_tokens": 0},
    "mla": MLA,
    "swa*2+mla": {**MLA, "layer_pattern": "swa*2+mla"},
    "8 experts, top-2": {"n_experts": 8, "expert_size": 1024},
}


class Source:
    """Packed rows in which three of four tokens follow from the two before."""

    def __init__(self, vocabulary: int, rows: int, length: int, device: str):
        self.vocabulary, self.rows, self.length, self.device = vocabulary, rows, length, device
        self.generator = torch.Generator().manual_seed(0)

    def next(self) -> tuple[torch.Tensor, ...]:
        shape = (self.rows, self.length + 1)
        row = torch.randint(0, 512, shape, generator=self.generator)
        for t in range(2, shape[1]):
            follows = (row[:, t - 1] * 3 + row[:, t - 2] * 5 + 1) % 512
            row[:, t] = torch.where(torch.arange(self.rows) * 7 % 4 + t % 4 != 3, follows, row[:, t])
        places = packed_places(self.rows, self.length, self.generator, self.device)
        row = row.to(self.device)
        return row[:, :-1], row[:, 1:], places.segments, places.positions  # type: ignore[return-value]


def train(changes: dict, options: argparse.Namespace, batches: list, device: str) -> dict:
    toy = options.toy
    sizes = {"preset": "tiny", "n_layers": 2} if toy else {"preset": "small"}
    config = ModelConfig(**{**sizes, **changes})
    vocabulary, length = (512, 128) if toy else (50304, options.length)
    torch.manual_seed(0)
    model = Decoder(config, vocabulary, length)
    model.initialise(torch.Generator().manual_seed(0))
    model.to(device).train()
    model.attention_backend = options.backend
    objective = CausalObjective(model)
    if device == "cuda" or options.compile:
        compile_parts(objective)
    optimizers = Optimizers(model, TrainParams(optimizer="adamw", lr=1e-3))
    losses, times = [], []
    started = time.perf_counter()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step, batch in enumerate(batches):
        before = time.perf_counter()
        with autocast(device, "bf16" if device == "cuda" else "fp32"):
            loss, nats = objective(*batch)
        (loss / batch[1].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(min(1.0, (step + 1) / 5))
        optimizers.zero_grad()
        for module in model.modules():
            if hasattr(module, "end_step"):
                module.end_step()
        losses.append(float(nats.detach()) / batch[1].numel())
        times.append(time.perf_counter() - before)
    seconds = statistics.median(times[len(times) // 2 :])
    tokens = batches[0][1].numel()
    rate = tokens / seconds
    return {
        "tokens_per_s": rate,
        "tflops": rate * flops_per_token(config, vocabulary, length) / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "compile_s": time.perf_counter() - started - seconds * len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--only", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    length = 128 if options.toy else options.length
    source = Source(512, (1024 if options.toy else 32768) // length, length, device)
    batches = [source.next() for _ in range(options.steps)]
    found: dict[str, dict] = {}
    for name in options.only:
        try:
            result = found[name] = train(ARCHITECTURES[name], options, batches, device)
        except Exception as error:
            print(f"{name:24} FAILED {type(error).__name__} {str(error)[:300]}", flush=True)
            continue
        plain = found.get("plain (qk_norm off)", result)["tflops"]
        print(
            f"{name:24} {result['tokens_per_s'] / 1e3:8.1f}K tokens/s {result['tflops']:7.2f} TFLOP/s "
            f"{result['tflops'] / plain:5.2f} of plain, {result['peak_gib']:5.1f} GiB, loss "
            f"{result['first_loss']:.2f} to {result['last_loss']:.2f}, compiled in {result['compile_s']:.0f} s",
            flush=True,
        )
        torch._dynamo.reset()
        if options.out:
            options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
