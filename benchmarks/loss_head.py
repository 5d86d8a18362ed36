"""From hidden states to the loss and its gradients, four ways: `python -m benchmarks.training --head`.

    all logits   one product and torch's cross-entropy, compiled together: fastest, and the memory of all logits
    chunks       ours (stages/train/cross_entropy.py): so many tokens at a time
    no logits    ours by fused kernels (stages/train/scaled_cross_entropy.py), where quack-kernels is installed
    liger        Liger's fused linear cross-entropy, where it is installed

Width 1,536, 16,384 tokens, vocabulary 50,304, bf16 by autocast over an fp32 head. Ways are timed in turn and the
median taken; GiB are those that a pass holds above what was there, at its highest. Gradients are compared with
those of fp32: the largest difference by the largest gradient.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.train.cross_entropy import LossTerms, chunked_cross_entropy
from stages.train.objective import autocast
from stages.train.scaled_cross_entropy import scaled_cross_entropy

Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, head, labels -> the sum of nats
GROUPS, PASSES = 9, 5


def all_logits(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ head.t()).float(), labels, reduction="sum")


def in_chunks(size: int, vocabulary: int) -> Way:
    terms = LossTerms(vocabulary)
    return lambda hidden, head, labels: chunked_cross_entropy(hidden, head, labels, terms, size)[0]


def ways(device: str, toy: bool, vocabulary: int) -> dict[str, Way]:
    found: dict[str, Way] = {"all logits, compiled": torch.compile(all_logits, dynamic=False)}
    for size in (16, 32) if toy else (1024, 2048, 4096, 8192):
        found[f"ours, chunks of {size}"] = in_chunks(size, vocabulary)
    if device == "cuda" and importlib.util.find_spec("quack"):
        for size in (1024, 2048, 4096, 8192):
            found[f"ours, no logits, {size}"] = functools.partial(scaled_cross_entropy, chunk_tokens=size)
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        def liger(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
            dtype = torch.get_autocast_dtype("cuda")
            args = (hidden.to(dtype), head.to(dtype), labels, None, None, -100, 0.0, 0.0, "sum")
            out = Liger.apply(*args)
            return out[0] if isinstance(out, tuple) else out

        found["liger"] = liger
    return found


def one_pass(way: Way, leaves: tuple[Tensor, Tensor, Tensor], device: str, precision: str) -> float:
    """Milliseconds of forward and backward."""
    hidden, head, labels = leaves
    hidden.grad = head.grad = None
    wait(device)
    started = time.perf_counter()
    for _ in range(PASSES):
        with autocast(device, precision):
            loss = way(hidden, head, labels)
        (loss / len(labels)).backward()
        kept = (hidden.grad, head.grad)
        hidden.grad = head.grad = None
    wait(device)
    hidden.grad, head.grad = kept
    return (time.perf_counter() - started) / PASSES * 1e3


def measure_heads(device: str, toy: bool) -> dict[str, dict[str, float]]:
    """A line for each way."""
    width, tokens, vocabulary = (32, 64, 128) if toy else (1536, 16384, 50304)
    precision = "bf16" if device == "cuda" else "fp32"
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, device=device)
    hidden = hidden.to(torch.bfloat16) if precision == "bf16" else hidden
    head = torch.randn(vocabulary, width, generator=generator, device=device) * 0.02
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator, device=device)
    leaves = (hidden.requires_grad_(), head.requires_grad_(), labels)
    exact = exact_gradients(leaves)
    found: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {}
    candidates = ways(device, toy, vocabulary)
    for name, way in list(candidates.items()):
        try:
            one_pass(way, leaves, device, precision)
        except Exception as error:
            print(f"head: {name:24} FAILED {type(error).__name__} {str(error)[:200]}", flush=True)
            del candidates[name]
            continue
        wrong = max(
            float((g.grad.float() - e).abs().max() / e.abs().max()) for g, e in zip(leaves, exact, strict=False)
        )
        found[name] = {"gib": gib_of(way, leaves, device, precision), "gradient_error": wrong}
        times[name] = []
    for _ in range(2 if toy else GROUPS):
        for name, way in candidates.items():
            times[name].append(one_pass(way, leaves, device, precision))
    first = statistics.median(times[next(iter(times))])
    for name, figures in found.items():
        figures["ms"] = statistics.median(times[name])
        print(
            f"head: {name:24} {figures['ms']:8.3f} ms ({figures['ms'] / first:.3f} of the first)  "
            f"{figures['gib']:.2f} GiB  gradients off by {figures['gradient_error']:.1e}",
            flush=True,
        )
    return found


def exact_gradients(leaves: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """By fp32, some tokens at a time."""
    hidden, head = (x.detach().float().requires_grad_() for x in leaves[:2])
    for part in torch.arange(len(hidden), device=hidden.device).split(2048):
        (all_logits(hidden[part], head, leaves[2][part]) / len(hidden)).backward()
    assert hidden.grad is not None and head.grad is not None
    return [hidden.grad, head.grad]


def gib_of(way: Way, leaves: tuple[Tensor, Tensor, Tensor], device: str, precision: str) -> float:
    if device != "cuda":
        return 0.0
    hidden, head, labels = leaves
    hidden.grad = head.grad = None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with autocast(device, precision):
        loss = way(hidden, head, labels)
    (loss / len(labels)).backward()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
