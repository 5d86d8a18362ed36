"""Times every backend of attention, forward and backward, and holds each against the oracle.

    python -m benchmarks.attention --out attention.json            # one GPU, a few minutes
    python -m benchmarks.attention --tokens 512 --check-only       # agreement alone

32K tokens a case, bf16, median of 20 replays of a CUDA graph, so that launches do not count. Memory is the peak
above what the inputs hold. `choice` is what `auto` takes; `loss` is its time over the best of those measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from model import flex
from model.backends import NAMES, Case, attend, choose, make_mask, unfit
from model.context import EVERYTHING, Places, Reach

WINDOW = Reach(256, 4)
MASKS = {
    "causal": (EVERYTHING, False),
    "window 256 + 4 sinks": (WINDOW, False),
    "window 256": (Reach(256, 0), False),
    "packed": (EVERYTHING, True),
    "packed, window 256 + 4 sinks": (WINDOW, True),
}
SHAPES = {  # query heads, key heads, width of keys, width of values
    "16 of 128": (16, 16, 128, 128),
    "16 of 128, 4 keys": (16, 4, 128, 128),
    "12 of 64": (12, 12, 64, 64),
    "mla 16 of 192/128": (16, 16, 192, 128),
}


def packed_places(rows: int, length: int, generator: torch.Generator, device: str) -> Places:
    """Documents whose lengths are geometric with mean length/4, cut at the ends of rows."""
    begins = torch.rand(rows, length, generator=generator) < 4 / length
    begins[:, 0] = True
    segments = begins.long().cumsum(dim=1) - 1
    slots = torch.arange(length).expand(rows, length)
    positions = slots - torch.where(begins, slots, 0).cummax(dim=1).values
    return Places(positions.to(device), segments.to(device))


def inputs(shape: tuple[int, int, int, int], rows: int, length: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    heads, keys, key_width, value_width = shape
    generator = torch.Generator(device).manual_seed(0)
    sizes = [(rows, length, heads, key_width), (rows, length, keys, key_width), (rows, length, keys, value_width)]
    made = [torch.randn(size, generator=generator, dtype=dtype, device=device) for size in sizes]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def measure(name: str, qkv: list[Tensor], places: Places, reach: Reach, device: str) -> dict[str, float]:
    """Milliseconds of forward and backward and of making the mask, and GiB."""
    packed = places.segments is not None
    scale = qkv[0].shape[-1] ** -0.5
    mask = make_mask(name, places, reach, True)
    upstream = torch.randn_like(attend(*qkv, mask, scale))

    def step() -> None:
        torch.autograd.grad(attend(*qkv, mask, scale), qkv, upstream)

    def making() -> None:
        make_mask(name, places, reach, True)

    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    peak = torch.cuda.max_memory_allocated() - held
    milliseconds, eager = timed(step), timed(step, graphed=False)
    mask_ms = timed(making, graphed=False) if packed or reach.window else 0.0
    return {"ms": milliseconds, "eager_ms": eager, "gib": peak / 2**30, "mask_ms": mask_ms}


def timed(function, repeats: int = 20, graphed: bool = True) -> float:
    """Median milliseconds of the GPU. A replayed CUDA graph leaves the time of Python and of launches out, which
    a deep model hides; what cannot be captured is timed with them."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    call = function
    if graphed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        call = graph.replay
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def disagreement(name: str, shape: tuple[int, int, int, int], reach: Reach, packed: bool, device: str, dtype) -> float:
    """The largest difference from the oracle in fp32, of outputs and gradients, relative to the largest value."""
    length = 512
    qkv = inputs(shape, 2, length, dtype, device)
    exact = [x.detach().float().requires_grad_() for x in qkv]
    places = packed_places(2, length, torch.Generator().manual_seed(1), device)
    places = places if packed else Places(places.positions.new_tensor(range(length)).expand(2, length))
    scale = qkv[0].shape[-1] ** -0.5
    y = attend(*qkv, make_mask(name, places, reach, True), scale)
    oracle = attend(*exact, make_mask("sdpa", places, reach, True), scale)
    upstream = torch.randn_like(oracle)
    ours = [y, *torch.autograd.grad(y, qkv, upstream.to(y.dtype))]
    theirs = [oracle, *torch.autograd.grad(oracle, exact, upstream)]
    return max(float((a.detach().float() - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def case_of(shape: tuple[int, int, int, int], length: int, reach: Reach, packed: bool, device: str, dtype) -> Case:
    heads, keys, key_width, value_width = shape
    generation = torch.cuda.get_device_capability()[0] if device == "cuda" else 0
    return Case(device, dtype, heads, keys, key_width, value_width, length, reach, packed, True, generation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--backends", nargs="+", default=list(NAMES))
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--skip-check", action="store_true")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found: list[dict] = []
    for shape_name, shape in SHAPES.items() if not options.skip_check else ():
        for mask_name, (reach, packed) in MASKS.items():
            torch._dynamo.reset()  # far from the limit of variants
            flex._compiled.cache_clear()
            usable = [n for n in options.backends if not unfit(n, case_of(shape, 512, reach, packed, device, dtype))]
            for name in usable:
                worst = disagreement(name, shape, reach, packed, device, dtype)
                print(f"{shape_name:20} {mask_name:30} {name:7} differs by {worst:.1e}", flush=True)
                found.append({"shape": shape_name, "mask": mask_name, "backend": name, "difference": worst})
    if not options.check_only:
        for shape_name in options.shapes:
            for mask_name in MASKS:
                for length in options.lengths:
                    found += row_of(shape_name, mask_name, length, options, device, dtype)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def row_of(shape_name: str, mask_name: str, length: int, options: argparse.Namespace, device: str, dtype) -> list[dict]:
    shape, (reach, packed) = SHAPES[shape_name], MASKS[mask_name]
    rows = max(1, options.tokens // length)
    generator = torch.Generator().manual_seed(2)
    places = packed_places(rows, length, generator, device)
    if not packed:
        places = Places(torch.arange(length, device=device).expand(rows, length))
    case = case_of(shape, length, reach, packed, device, dtype)
    results = []
    torch._dynamo.reset()  # each case compiles for itself, far from the limit of variants
    flex._compiled.cache_clear()
    for name in options.backends:
        dense_gib = rows * length**2 / 2**30 * (shape[0] * 2 + 1)
        if unfit(name, case) or (name == "sdpa" and (packed or reach.window) and dense_gib > 60):
            continue
        try:
            found = measure(name, inputs(shape, rows, length, dtype, device), places, reach, device)
        except Exception as error:
            print(f"{shape_name:20} {mask_name:30} {length:6} {name:7} FAILED {str(error)[:200]}", flush=True)
            continue
        results.append({"shape": shape_name, "mask": mask_name, "length": length, "backend": name, **found})
    if not results:
        return []
    best = min(result["ms"] for result in results)
    chosen = choose(case)
    line = "  ".join(
        f"{r['backend']} {r['ms']:.2f} ms {r['gib']:.2f} GiB (launched {r['eager_ms']:.2f}, mask {r['mask_ms']:.2f})"
        for r in results
    )
    loss = next((r["ms"] / best for r in results if r["backend"] == chosen), float("nan"))
    print(f"{shape_name:20} {mask_name:30} {length:6}  {line}  choice {chosen} {loss:.2f}", flush=True)
    return results


if __name__ == "__main__":
    main()
