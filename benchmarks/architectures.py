"""Trains every architecture for some steps at equal sizes: tokens/s, achieved TFLOP/s, memory, and the loss.

    python -m benchmarks.architectures --out architectures.json      # one GPU, about 20 s a row for compiling
    python -m benchmarks.architectures --preset base --kernels       # where the GPU's time goes, by kernel
    python -m benchmarks.architectures --toy                         # the same code in a minute on a CPU

Llama-shaped at T 2,048, 32K tokens a step in bf16, AdamW, blocks compiled. Rows hold packed documents of a
source with structure, so a loss that falls is learning. A speed counts only if it does. FLOPs are those of
model/size.py: windows and experts count what they compute. Steps are timed ten at a time, the median taken;
the plain model runs first and again after every fifth row, and each row is compared with the median of all
of its runs, because the card's clock moves by some per cent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.attention import packed_places
from model.config import ModelConfig
from model.decoder import Decoder
from model.experts import Experts
from model.size import flops_per_token
from stages.train.objective import CausalObjective, autocast, compile_parts
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams

MLA = {"layer_pattern": "mla", "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
PLAIN = "plain"
ARCHITECTURES: dict[str, dict] = {  # what each changes in the plain one, which has no QK-norm
    PLAIN: {},
    "qk_norm head": {"qk_norm": True},
    "qk_norm full": {"qk_norm": True, "qk_norm_scope": "full"},
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
GROUP = 10


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
    sizes = {"preset": "tiny", "n_layers": 2} if toy else {"preset": options.preset}
    config = ModelConfig(**{**sizes, "qk_norm": False, **changes})
    vocabulary, length = (512, 128) if toy else (50304, options.length)
    torch.manual_seed(0)
    model = Decoder(config, vocabulary, length)
    model.initialise(torch.Generator().manual_seed(0))
    model.to(device).train()
    model.attention_backend = options.backend
    objective = CausalObjective(model)
    if device == "cuda" or options.compile:
        compile_parts(model, objective)
    optimizers = Optimizers(model, TrainParams(optimizer="adamw", lr=1e-3))
    experts = [module for module in model.modules() if isinstance(module, Experts)]

    def one_step(step: int) -> torch.Tensor:
        batch = batches[step]
        with autocast(device, "bf16" if device == "cuda" else "fp32"):
            loss, nats = objective(*batch)
        (loss / batch[1].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(min(1.0, (step + 1) / 5), nats.isfinite())
        optimizers.zero_grad()
        for module in experts:
            module.end_step()
        return nats.detach() / batch[1].numel()

    started = time.perf_counter()
    losses = [float(one_step(0))]
    compile_s = time.perf_counter() - started
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for first in range(1, len(batches) - GROUP + 1, GROUP):
        before = time.perf_counter()
        nats = [one_step(step) for step in range(first, first + GROUP)]
        losses.append(float(nats[-1]))  # waits for the card
        times.append((time.perf_counter() - before) / GROUP)
    if options.kernels:
        print(kernel_table(lambda: one_step(len(batches) - 1)))
    seconds = statistics.median(times[1:] or times)
    tokens = batches[0][1].numel()
    rate = tokens / seconds
    return {
        "tokens_per_s": rate,
        "tflops": rate * flops_per_token(config, vocabulary, length) / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "compile_s": compile_s,
    }


def kernel_table(step: Callable[[], object]) -> str:
    """The kernels of one step by their time on the card."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=80)


def line_of(name: str, result: dict, plain: float) -> str:
    return (
        f"{name:24} {result['tokens_per_s'] / 1e3:8.1f}K tokens/s {result['tflops']:7.2f} TFLOP/s "
        f"{result['tflops'] / plain:6.3f} of plain, {result['peak_gib']:5.1f} GiB, loss "
        f"{result['first_loss']:.2f} to {result['last_loss']:.2f}, first step {result['compile_s']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=51)
    parser.add_argument("--kernels", action="store_true")
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
    plain: list[float] = []
    for number, name in enumerate(options.only):
        for row in dict.fromkeys((PLAIN, name)) if number % 5 == 0 else (name,):
            try:
                result = found[row] = train(ARCHITECTURES[row], options, batches, device)
            except Exception as error:
                print(f"{row:24} FAILED {type(error).__name__} {str(error)[:300]}", flush=True)
                continue
            finally:
                torch._dynamo.reset()
            if row == PLAIN:
                plain.append(result["tflops"])
            print(line_of(row, result, statistics.median(plain)), flush=True)
    for result in found.values():
        result["of_plain"] = result["tflops"] / statistics.median(plain)
    print(f"plain in {len(plain)} runs: {', '.join(f'{x:.1f}' for x in plain)} TFLOP/s")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
