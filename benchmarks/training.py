"""Trains equal decoders by ours and by peers on one device in one run: tokens/s, MFU, memory, and the loss.

    python -m benchmarks.training --shape medium --peers torchtitan --precision bf16 fp8 --rows 8     # a GPU
    python -m benchmarks.training ours:base:swiglu:4:fp8 torchtitan:base:swiglu:4:fp8                 # these rows alone
    python -m benchmarks.training --cpu            # the default run's model on two cores, sides in turn
    python -m benchmarks.training --loader         # packed rows read, checked by eye against 200M tokens/s a core
    python -m benchmarks.training --head           # hidden states to loss and gradients: ms and GiB
    python -m benchmarks.training --toy            # all of it in a minute on a CPU

A row is one side, shape, MLP, micro-batch and precision. All begin with equal weights, read the same batches, take
the same tokens a step (micro-batches are accumulated) and the same AdamW: betas 0.9 and 0.95, decay 0.1, clip 1.
Weights are fp32 and products bf16 by autocast, for all of them. benchmarks/sides.py says how each is put together.

**A speed counts only if the loss falls.** The rows have structure (three of four tokens follow from the two
before), so a loss that falls is learning; each line has the first loss and the last, and what the last differs by
from that of our first row of the shape. Steps are timed in groups and the median taken. FLOPs are those of
model/size.py, of a nominal 989 TFLOP/s in bf16 whatever the precision. Memory is the peak after warm-up, as allocated
and as reserved by torch's allocator: a CUDA graph, which ours is, keeps its memory reserved where the allocator does
not count it, so sides are compared by what is reserved.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loader import measure_loader
from benchmarks.loss_head import measure_heads
from benchmarks.sides import SIDES, Setting, Side
from model.config import ModelConfig
from model.context import count_documents
from model.size import flops_per_token
from stages.errors import BadInput
from stages.train.batches import MicroBatch
from stages.train.params import TrainParams

NOMINAL = 989e12  # dense bf16 of the H200's data sheet
WARM_UP = 3
DISTINCT = 4  # so many different batches, read in turn


@dataclasses.dataclass(frozen=True)
class Shape:
    preset: str
    vocab_size: int
    length: int
    tokens: int  # of a step
    rows: int  # of a micro-batch, if not said
    qk_norm: bool = False
    layers: int = 0  # instead of the preset's

    def config(self, mlp: str = "swiglu") -> ModelConfig:
        return ModelConfig(
            preset=self.preset, n_layers=self.layers, mlp=mlp, qk_norm=self.qk_norm, residual_init="scaled"
        )


SHAPES = {
    "124m": Shape("gpt2-124m", 50304, 1024, 131072, 32),
    "medium": Shape("d24", 50304, 2048, 65536, 8),
    "base": Shape("base", 50304, 2048, 32768, 4),
    "1b": Shape("large", 50304, 2048, 32768, 4, layers=18),
    "default": Shape("tiny", 4096, 256, 4096, 4, qk_norm=True),  # of params.yaml
    "toy": Shape("tiny", 512, 64, 512, 4),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one line measures. `detail` is a variant of a side: plain or packed rows, another optimizer, compiled."""

    side: str
    shape: str
    mlp: str
    rows: int
    precision: str
    packed: bool = False
    optimizer: str = "adamw"
    compiled: bool | str = "auto"

    @property
    def name(self) -> str:
        extra = [*(["packed"] * self.packed), *([self.optimizer] * (self.optimizer != "adamw"))]
        extra += [] if self.compiled == "auto" else ["compiled" if self.compiled else "eager"]
        return " ".join([self.side, self.shape, self.mlp, f"rows {self.rows}", self.precision, *extra])


@functools.cache
def source(length: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of length + 1 tokens below 512, and the segments and positions of documents of 512 tokens on average."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(0, 512, (rows, length + 1), generator=generator)
    for t in range(2, length + 1):
        follows = (row[:, t - 1] * 3 + row[:, t - 2] * 5 + 1) % 512
        row[:, t] = torch.where(torch.arange(rows) * 7 % 4 + t % 4 != 3, follows, row[:, t])
    begins = torch.rand(rows, length, generator=generator) < 1 / 512
    begins[:, 0] = False
    starts = torch.where(begins, torch.arange(length), 0).cummax(1).values
    return row, begins.cumsum(1), torch.arange(length) - starts


@functools.cache
def step_batches(shape: Shape, rows: int, number: int, pinned: bool) -> list[MicroBatch]:
    """The micro-batches of a step; the last one is smaller where `rows` does not divide the step."""

    def tensor(value: Tensor) -> Tensor:
        return value.contiguous().pin_memory() if pinned else value.contiguous()

    per_step = shape.tokens // shape.length
    row, segments, positions = source(shape.length, DISTINCT * per_step)
    found = []
    for first in range(0, per_step, rows):
        part = slice(number * per_step + first, number * per_step + min(first + rows, per_step))
        arrays = (row[part, :-1], row[part, 1:], segments[part], positions[part])
        found.append(MicroBatch(*map(tensor, arrays), count_documents(segments[part])))
    return found


class Measurement:
    """One row in training: built and warmed up, then timed a group of steps at a time."""

    def __init__(self, row: Row, options: argparse.Namespace, device: str):
        self.row, self.device, self.shape = row, device, SHAPES[row.shape]
        self.config = self.shape.config(row.mlp)
        params = TrainParams(
            optimizer=row.optimizer, lr=1e-3, schedule="constant", warmup_steps=5, max_steps=10**6,
            batch_tokens=self.shape.tokens, precision=row.precision, grad_clip=1.0, weight_decay=0.1,
        )  # fmt: skip
        setting = Setting(
            self.config, self.shape.vocab_size, self.shape.length, row.rows, params, device, row.compiled,
            options.backend, options.activation_checkpointing, row.packed,
        )  # fmt: skip
        self.number, self.seconds = 0, list[float]()
        started = time.perf_counter()
        self.side: Side = SIDES[row.side](setting)
        self.first_loss = self.last_loss = self.train(1)
        self.compile_seconds = time.perf_counter() - started
        self.train(WARM_UP - 1)
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # what compiling and choosing kernels held is no part of training
            torch.cuda.reset_peak_memory_stats()

    def train(self, steps: int) -> float:
        """The loss of the last of so many steps, which is waited for."""
        for _ in range(steps):
            batches = step_batches(self.shape, self.row.rows, self.number % DISTINCT, self.device == "cuda")
            loss = self.side.step(batches, self.number)
            self.number += 1
        return float(loss)

    def time_group(self, steps: int) -> None:
        started = time.perf_counter()
        self.last_loss = self.train(steps)
        self.seconds.append((time.perf_counter() - started) / steps)

    def result(self) -> dict:
        rate = self.shape.tokens / statistics.median(self.seconds)
        flops = flops_per_token(self.config, self.shape.vocab_size, self.shape.length)
        gib = 2.0**-30 if self.device == "cuda" else 0.0
        return {
            **dataclasses.asdict(self.row), "name": self.row.name, "tokens_per_s": rate,
            "fastest": self.shape.tokens / min(self.seconds), "slowest": self.shape.tokens / max(self.seconds),
            "mfu_of_989": rate * flops / NOMINAL,
            "reserved_gib": torch.cuda.max_memory_reserved() * gib if gib else 0.0,
            "allocated_gib": torch.cuda.max_memory_allocated() * gib if gib else 0.0,
            "first_loss": self.first_loss, "last_loss": self.last_loss, "steps": self.number,
            "compile_s": self.compile_seconds,
        }  # fmt: skip


def line_of(result: dict, before: Sequence[dict]) -> str:
    """One line, with ratios to our rows of the same shape and precision that were measured before."""
    ours = [r for r in before if r["side"] == "ours" and r["shape"] == result["shape"] and not r["packed"]]
    text = (
        f"{result['name']:52} {result['tokens_per_s'] / 1e3:8.2f}K tokens/s  MFU {result['mfu_of_989']:.3f}  "
        f"GiB reserved {result['reserved_gib']:5.1f} allocated {result['allocated_gib']:5.1f}  "
        f"loss {result['first_loss']:.4f} to {result['last_loss']:.4f}"
    )
    if ours:
        text += f" ({result['last_loss'] - ours[0]['last_loss']:+.4f})"
    if result["last_loss"] > result["first_loss"] - 0.1:
        text += " DOES NOT LEARN"
    equal = [r for r in ours if r["precision"] == result["precision"]]
    if equal and result["side"] != "ours":
        best = max(equal, key=lambda r: r["tokens_per_s"])
        text += f"  ours / this: speed {best['tokens_per_s'] / result['tokens_per_s']:.3f}"
        if result["reserved_gib"]:
            text += f", memory {best['reserved_gib'] / result['reserved_gib']:.2f}"
    return text + f"  first step {result['compile_s']:.0f} s"


def measure(rows: Sequence[Row], options: argparse.Namespace, device: str) -> list[dict]:
    """Row after row, each alone on the device; or, on a CPU, all built and then timed in turn, so that what else
    the machine does falls on all of them."""
    results: list[dict] = []
    waiting: list[Measurement] = []
    for row in rows:
        try:
            measurement = Measurement(row, options, device)
            if device == "cuda":
                for _ in range(options.groups):
                    measurement.time_group(options.steps)
                show(measurement.result(), results, options)
            else:
                waiting.append(measurement)
                print(f"{row.name:52} built in {measurement.compile_seconds:.0f} s", flush=True)
        except Exception as error:
            print(f"{row.name:52} FAILED {type(error).__name__} {str(error)[:300]}", flush=True)
        measurement = None  # type: ignore[assignment]  # its memory goes before the next is built
        if device == "cuda":
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
    for _ in range(options.groups):
        for measurement in waiting:
            measurement.time_group(options.steps)
    for measurement in waiting:
        show(measurement.result(), results, options)
    return results


def show(result: dict, results: list[dict], options: argparse.Namespace) -> None:
    print(line_of(result, results), flush=True)
    results.append(result)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


def rows_of(options: argparse.Namespace) -> list[Row]:
    """Ours in every MLP, then each peer in the first MLP that it has, a precision at a time."""
    if options.row:
        return [Row(side, shape, mlp, int(rows), precision) for side, shape, mlp, rows, precision in options.row]
    rows = options.rows or [SHAPES[options.shape].rows]
    found = []
    for precision in options.precision:
        for mlp in options.mlp:
            for packed in (False, True) if options.packed else (False,):
                found += [Row("ours", options.shape, mlp, n, precision, packed) for n in rows]
        for peer in options.peers:
            if precision != "fp8" or peer == "torchtitan":
                mlp = next((m for m in options.mlp if m in MLPS_OF_PEERS[peer]), "swiglu")
                found += [Row(peer, options.shape, mlp, n, precision) for n in options.peer_rows or rows]
    return found


MLPS_OF_PEERS = {
    "litgpt": ("swiglu", "gelu"),
    "transformers": ("swiglu", "geglu", "gelu", "relu2"),
    "torchtitan": ("swiglu",),
}


def cpu_rows(options: argparse.Namespace, shape: str) -> list[Row]:
    """The default run as it is, step by step nearer to what peers do, and all in their better way and batch."""
    rows = options.rows or [SHAPES[shape].rows]
    found = [Row("ours", shape, "swiglu", n, "fp32", True, "muon") for n in rows]
    found += [Row("ours", shape, "swiglu", n, "fp32", packed) for n in rows for packed in (True, False)]
    found += [Row("ours", shape, "swiglu", n, "fp32", False, "adamw", True) for n in rows]
    for peer in options.peers:
        for compiled in (False, True):
            found += [
                Row(peer, shape, "swiglu", n, "fp32", False, "adamw", compiled) for n in options.peer_rows or rows
            ]
    return found


def row_spec(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(":"))
    if len(parts) != 5 or parts[0] not in SIDES or parts[1] not in SHAPES or not parts[3].isdigit():
        raise argparse.ArgumentTypeError(f"{text}: not SIDE:SHAPE:MLP:ROWS:PRECISION, such as ours:base:swiglu:4:bf16")
    return parts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="*", type=row_spec, help="SIDE:SHAPE:MLP:ROWS:PRECISION, instead of the options")
    parser.add_argument("--shape", choices=list(SHAPES), default="124m")
    parser.add_argument("--peers", nargs="*", choices=[name for name in SIDES if name != "ours"], default=[])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "fp8"], default=["bf16"])
    parser.add_argument("--rows", type=int, nargs="+", help="of a micro-batch; default: of the shape")
    parser.add_argument("--peer-rows", type=int, nargs="+", help="the same for peers; default: --rows")
    parser.add_argument("--mlp", nargs="+", default=["swiglu"])
    parser.add_argument("--packed", action="store_true", help="ours on packed documents too")
    parser.add_argument("--backend", default="auto", help="ours: of attention")
    parser.add_argument("--activation-checkpointing", default="none", help="ours")
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7, help="of a group")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = "cuda" if torch.cuda.is_available() and not (options.cpu or options.toy) else "cpu"
    if options.toy:
        options.groups, options.steps = min(options.groups, 2), min(options.steps, 3)
    if options.loader or options.toy:
        measure_loader(options.toy)
    if options.head or options.toy:
        measure_heads(device, options.toy)
    if options.loader or options.head:
        return
    if device == "cpu" and not (options.cpu or options.toy):
        raise SystemExit("benchmarks.training: no GPU; take --cpu or --toy")
    try:
        if options.row or device == "cuda":
            rows = rows_of(options)
        else:
            rows = cpu_rows(options, "toy" if options.toy else "default")
        measure(rows, options, device)
    except BadInput as error:
        raise SystemExit(f"benchmarks.training: {error}") from None


if __name__ == "__main__":
    main()
