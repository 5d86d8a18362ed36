"""One GPU against all GPUs of a host, at an equal global batch: tokens/s, efficiency, memory, communication, losses.

    python -m benchmarks.scaling --gpus 4 --shapes medium base --precisions bf16 fp8 --backend fa4 --out scaling.jsonl
    python -m benchmarks.scaling --gpus 2 --shapes 1b --rows 32 --ways one graphs parts --no-kill    # 200 s
    python -m benchmarks.scaling --gpus 4 --kill        # a rank is killed in mid-run and the command given again
    python -m benchmarks.scaling --toy                  # both on two CPU ranks, in two minutes

A row is a shape, a precision and a way to share: `one` (one GPU takes the whole batch, in more micro-batches),
`graphs` and `overlap` (the whole model on every GPU; stages/train/exchange.py) and `parts` (FSDP2). All begin with
equal weights and take the same rows a step, so losses must agree up to rounding: `apart` is the largest difference
from one GPU's over all steps. Efficiency is tokens/s over N times those of the one GPU, measured in the same call; the
one-GPU rows run at the same time, each on a GPU of its own.

Communication is read from a profile of one step on the first rank: `busy` the time in which a kernel of NCCL ran, and
`alone` the part of it in which no other did, both of the step's time. A rank that waits for another counts as busy.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.killed_rank import kill_a_rank
from benchmarks.sides import Ours, Setting
from benchmarks.training import DISTINCT, NOMINAL, SHAPES, Shape, source
from model.size import flops_per_token
from stages.execution import Execution
from stages.train.batches import MicroBatch
from stages.train.params import TrainParams
from stages.train.ranks import Ranks, join_ranks, leave_ranks

WARM_UP, GROUP = 3, 3  # steps
WAYS = {"one": ("none", "auto"), "graphs": ("none", "auto"), "overlap": ("none", False), "parts": ("full", "auto")}
Interval = tuple[float, float]


def shape_of(name: str, tokens: int, rows: int) -> Shape:
    return dataclasses.replace(SHAPES[name], tokens=tokens, rows=rows or SHAPES[name].rows)


def batches_of(shape: Shape, ranks: Ranks, number: int) -> list[MicroBatch]:
    """The micro-batches of this rank in a step: every world-th row of it."""
    per_step = shape.tokens // shape.length
    row, segments, positions = (
        part[number * per_step :][:per_step][ranks.rank :: ranks.world]
        for part in source(shape.length, DISTINCT * per_step)
    )
    on_gpu = ranks.device != "cpu"
    found = []
    for first in range(0, len(row), shape.rows):
        part = slice(first, first + shape.rows)
        arrays = [row[part, :-1], row[part, 1:], torch.zeros_like(segments[part]), positions[part]]
        arrays = [array.contiguous().pin_memory() if on_gpu else array.contiguous() for array in arrays]
        found.append(MicroBatch(*arrays, len(arrays[0])))
    return found


class Row:
    """One way of training, built on every rank."""

    def __init__(self, name: str, precision: str, way: str, options: argparse.Namespace, ranks: Ranks):
        self.name, self.precision, self.way, self.ranks = name, precision, way, ranks
        self.shape = shape_of(name, options.tokens, options.rows)
        self.config = self.shape.config()
        params = TrainParams(
            optimizer="adamw", lr=1e-3, schedule="constant", warmup_steps=5, max_steps=10**6,
            batch_tokens=options.tokens, precision=precision, grad_clip=1.0,
        )  # fmt: skip
        setting = Setting(
            self.config, self.shape.vocab_size, self.shape.length, self.shape.rows, params, ranks.device,
            compiled="auto", backend=options.backend,
        )  # fmt: skip
        self.batches = [batches_of(self.shape, ranks, number) for number in range(DISTINCT)]
        sharding, graphs = WAYS[way]
        self.side = Ours(setting, ranks, sharding, graphs)
        self.losses: list[float] = []

    def train(self, steps: int) -> float:
        """Takes so many steps; seconds a step."""
        self.ranks.barrier()
        started = time.perf_counter()
        first = len(self.losses)
        losses = [self.side.step(self.batches[n % DISTINCT], n) for n in range(first, first + steps)]
        self.losses += torch.stack(losses).tolist()
        return (time.perf_counter() - started) / steps

    def measure(self, groups: int) -> dict:
        first = self.train(1)
        self.train(WARM_UP - 1)
        on_gpu = self.ranks.device != "cpu"
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = [self.train(GROUP) for _ in range(groups)]
        rate = self.shape.tokens / statistics.median(seconds)
        flops = flops_per_token(self.config, self.shape.vocab_size, self.shape.length)
        return {
            "shape": self.name, "precision": self.precision, "way": self.way, "gpus": self.ranks.world,
            "tokens": self.shape.tokens, "rows": self.shape.rows, "tokens_per_s": rate,
            "slowest": self.shape.tokens / max(seconds), "fastest": self.shape.tokens / min(seconds),
            "mfu_of_989": rate * flops / NOMINAL / self.ranks.world,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else 0.0,
            "losses": self.losses, "first_step_s": first, **(self.communication() if on_gpu else {}),
        }  # fmt: skip

    def communication(self) -> dict[str, float]:
        """The parts of a step's time in which NCCL works, and works alone."""
        if self.ranks.world == 1:
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            self.train(1)
            torch.cuda.synchronize()
        events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        theirs: list[Interval] = []
        ours: list[Interval] = []
        for event in events:
            interval = (event.time_range.start, event.time_range.end)
            (theirs if "nccl" in event.name.lower() else ours).append(interval)
        whole = covered([*theirs, *ours])
        return {"busy": covered(theirs) / whole, "alone": (whole - covered(ours)) / whole}


def covered(intervals: list[Interval]) -> float:
    """The time that lies in some interval. Example: (0, 2), (1, 3), (5, 6) cover 4."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def work(options: argparse.Namespace) -> None:
    """What each process does: its rows one after another; the first rank writes them down."""
    launched = "RANK" in os.environ
    ranks = join_ranks(Execution(device="cpu" if options.toy else "cuda", threads=1 if options.toy else 0), launched)
    for name in options.shapes:
        for precision in options.precisions:
            for way in options.ways:
                result = Row(name, precision, way, options, ranks).measure(options.groups)
                if ranks.first:
                    with options.out.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    print(line_of(result, options.out), flush=True)
                gc.collect()
                if not options.toy:
                    torch.cuda.empty_cache()
    leave_ranks()


def line_of(result: dict, out: Path) -> str:
    losses = result["losses"]
    text = (
        f"{result['shape']:7} {result['precision']:5} {result['gpus']} x {result['way']:8} "
        f"rows {result['rows']:2} {result['tokens_per_s'] / 1e3:8.1f}K tokens/s "
        f"({result['slowest'] / 1e3:.1f} to {result['fastest'] / 1e3:.1f}) "
        f"MFU {result['mfu_of_989']:.3f}  GiB reserved {result['reserved_gib']:5.1f}  "
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}"
    )
    one = [
        found for found in map(json.loads, out.read_text().splitlines())
        if found["way"] == "one" and all(found[key] == result[key] for key in ("shape", "precision", "tokens"))
    ]  # fmt: skip
    if one and result["way"] != "one":
        pairs = list(zip(one[-1]["losses"], losses, strict=False))
        text += f" apart {max(abs(a - b) for a, b in pairs):.1e}"
        text += f"  efficiency {result['tokens_per_s'] / result['gpus'] / one[-1]['tokens_per_s']:.3f}"
    if "busy" in result:
        text += f"  NCCL busy {result['busy']:.3f} alone {result['alone']:.3f}"
    return text + f"  first step {result['first_step_s']:.0f} s"


def arguments_of(options: argparse.Namespace, shapes: list[str], precisions: list[str], ways: list[str]) -> list[str]:
    words = ["--worker", "--shapes", *shapes, "--precisions", *precisions, "--ways", *ways, "--out", str(options.out)]
    words += ["--tokens", str(options.tokens), "--groups", str(options.groups), "--backend", options.backend]
    words += ["--rows", str(options.rows)]
    return [*words, *(["--toy"] if options.toy else [])]


def together(options: argparse.Namespace) -> None:
    """One GPU's rows at the same time, each on a GPU of its own; then those of all GPUs, one after another."""
    module = ["-m", "benchmarks.scaling"]
    pairs = [(shape, precision) for shape in options.shapes for precision in options.precisions]
    waiting: list[subprocess.Popen] = []
    for number, (shape, precision) in enumerate(pairs if "one" in options.ways else []):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(number % options.gpus)}
        command = [sys.executable, *module, *arguments_of(options, [shape], [precision], ["one"])]
        waiting.append(subprocess.Popen(command, env=environment))
        if len(waiting) == options.gpus:
            finish(waiting)
    finish(waiting)
    if ways := [way for way in options.ways if way != "one"]:
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}"]
        words = arguments_of(options, options.shapes, options.precisions, ways)
        subprocess.run([sys.executable, *several, *module, *words], check=True)


def finish(waiting: list[subprocess.Popen]) -> None:
    codes = [process.wait() for process in waiting]
    if any(codes):
        raise SystemExit("benchmarks.scaling: a row of one GPU failed; the reason stands above")
    waiting.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["medium", "base"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "fp8"], default=["bf16"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=262144, help="of a step, whatever the number of GPUs")
    parser.add_argument("--groups", type=int, default=3, help=f"timed groups of {GROUP} steps")
    parser.add_argument("--rows", type=int, default=0, help="of a micro-batch; default: of the shape")
    parser.add_argument("--backend", default="auto", help="of attention")
    parser.add_argument(
        "--kill", action=argparse.BooleanOptionalAction, help="kill a rank in mid-run, and nothing else"
    )
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON lines, appended")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.toy:
        options.gpus, options.shapes, options.precisions, options.tokens = 2, ["toy"], ["fp32"], 2048
    with tempfile.TemporaryDirectory() as temporary:
        options.out = options.out or Path(temporary) / "scaling.jsonl"
        if not options.kill:
            together(options)
        if options.kill or (options.toy and options.kill is None):
            for sharding in ("none", "full"):
                kill_a_rank(Path(temporary) / sharding, options.gpus, not options.toy, sharding)


if __name__ == "__main__":
    main()
