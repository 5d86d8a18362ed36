"""What throughput does not show: the cost of one token alone, the wait of who joins, and what running together changes.

    step_costs        ms a token of one sequence, launches (operations on a CPU), and what memory bandwidth allows
    joining           seconds to the first token of a request that joins running streams, and of one that is alone
    beside_and_alone  how far logits of sequences that run together are from those of each by itself

`python -m benchmarks.serving` calls all of them.
"""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from model.decoder import Decoder
from model.reordered import ReorderedDecoder
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Request
from serving.worker import Worker, started
from stages.exported import Exported

H200_BYTES_PER_SECOND = 4.26e12  # what a copy on the device reaches, of 4.8e12 on paper


def step_costs(exported: Exported, prompt: Sequence[int], n_steps: int, compiled: str) -> dict[str, float]:
    """Of one token of one sequence: ms with the engine around it, ms of the step by itself, and launches.

    The step by itself is on a GPU the recorded graph, replayed without a word from the host.
    """
    engine, times = Engine(Reader(exported.model, 1, exported.context_length, compiled), exported.tokenizer), []
    begun, seconds, on_gpu = time.perf_counter(), 0.0, exported.device == "cuda"
    for _ in range(2):  # the first one records the graphs
        times = []
        engine.submit(Request(tuple(prompt), n_steps), lambda piece: times.append(time.perf_counter()))  # noqa: B023
        while not engine.idle:
            engine.step()
        seconds = seconds or time.perf_counter() - begun
    reader, place = engine.reader, len(prompt) + 1

    def step() -> None:
        if reader.graphs:
            next(iter(reader.graphs.values())).graph.replay()
        else:
            reader.step([prompt[0]], [place])

    n_bytes = bytes_read(exported.model)
    return {
        "first_seconds": seconds,
        "own": reader.alone is not None,
        "engine_ms": 1e3 * statistics.median(b - a for a, b in itertools.pairwise(times)),
        "step_ms": 1e3 * seconds_of(step, n_steps, on_gpu),
        "megabytes": n_bytes / 1e6,
        "gigabytes_per_second": (bandwidth := H200_BYTES_PER_SECOND if on_gpu else cpu_bandwidth()) / 1e9,
        "limit_ms": 1e3 * n_bytes / bandwidth,
        **launches(step, on_gpu),
    }


def bytes_read(model: Decoder) -> int:
    """Of the weights, for one token: all of them, but for an embedding that is not the head, of which one row is."""
    tensors = (*model.parameters(), *model.buffers())
    looked_up = model.head is not None or isinstance(model, ReorderedDecoder)
    return sum(t.numel() * t.element_size() for t in tensors) - looked_up * model.embedding.weight.nbytes


def cpu_bandwidth() -> float:
    """Bytes per second that this many threads read, the best of five sums over 480 MB."""
    numbers, best = torch.ones(120_000_000), float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - begun)
    return numbers.nbytes / best


def seconds_of(step: Callable[[], None], n_steps: int, on_gpu: bool) -> float:
    """On the device where there is one, else on the clock."""
    if not on_gpu:
        begun = time.perf_counter()
        for _ in range(n_steps):
            step()
        return (time.perf_counter() - begun) / n_steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(n_steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / n_steps / 1e3


def launches(step: Callable[[], None], on_gpu: bool) -> dict[str, int]:
    """What the host starts in a step, and how many kernels run. On a CPU: operations, and all they consist of."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    events = list(seen.events() or [])
    if not on_gpu:
        outermost = sum(event.cpu_parent is None for event in events)
        return {"launches": outermost, "kernels": len(events)}
    started_by_host = sum("Launch" in event.name for event in events)
    return {"launches": started_by_host, "kernels": sum(event.device_type.name == "CUDA" for event in events)}


def joining(exported: Exported, prompt: Sequence[int], n_streams: int, repeats: int, compiled: str) -> dict[str, float]:
    """Median seconds to the first token, alone and beside all streams but one. Requests come at any moment of a step.

    Streams that have come to the end of the context are replaced.
    """
    reader = Reader(exported.model, n_streams, exported.context_length, compiled)
    worker = Worker(Engine(reader, exported.tokenizer))
    most, over = exported.context_length - len(prompt), threading.Event()

    def stream(piece=None) -> None:  # type: ignore[no-untyped-def]
        if (piece is None or piece.finish) and not over.is_set():
            worker.submit(Request(tuple(prompt), most), stream)

    with started(worker):
        alone = [first_token_seconds(worker, prompt) for _ in range(repeats + 3)][3:]
        for _ in range(n_streams - 1):
            stream()
        for _ in range(3):
            first_token_seconds(worker, prompt)
        while not all(running.draws for running in list(worker.engine.running)):
            time.sleep(0.01)
        joined = [first_token_seconds(worker, prompt) for _ in range(repeats)]
        over.set()
        for running in (*worker.engine.running, *worker.engine.waiting):
            worker.cancel(running)
    return {"alone_ms": 1e3 * statistics.median(alone), "joined_ms": 1e3 * statistics.median(joined)}


def first_token_seconds(worker: Worker, prompt: Sequence[int]) -> float:
    time.sleep(random.random() * 0.03)
    came = threading.Event()
    begun = time.perf_counter()
    worker.submit(Request(tuple(prompt), 1), lambda piece: came.set())
    if not came.wait(timeout=120):
        raise TimeoutError("no token within 120 s")
    return time.perf_counter() - begun


@torch.inference_mode()
def beside_and_alone(
    exported: Exported, prompts: Sequence[Sequence[int]], n_steps: int, n_alone: int, compiled: str
) -> dict[str, float]:
    """The largest difference of a logit, and the largest lead of the best token over the second where another wins;
    both as a share of the largest logit of that step."""
    reader = Reader(exported.model, len(prompts), exported.context_length, compiled)
    together = [torch.stack([reader.fill(row, prompt, 0) for row, prompt in enumerate(prompts)])]
    for place in range(n_steps):
        tokens = together[-1].argmax(-1).tolist()
        together.append(reader.step(tokens, [len(prompt) + place for prompt in prompts]).clone())
    by_itself = Reader(exported.model, 1, exported.context_length, compiled)
    found = {"logit": 0.0, "lead": 0.0, "others": 0.0}
    for row in range(min(n_alone, len(prompts))):
        logits_V, written = by_itself.fill(0, prompts[row], 0), [beside[row].argmax().item() for beside in together]
        for place, beside in enumerate(together):
            apart, largest = (beside[row].float() - logits_V.float()).abs(), float(logits_V.abs().max())
            found["logit"] = max(found["logit"], float(apart.nan_to_num(nan=torch.inf).max()) / largest)
            if logits_V.argmax() != written[place]:
                best, second = logits_V.float().topk(2).values.tolist()
                found["others"], found["lead"] = found["others"] + 1, max(found["lead"], (best - second) / largest)
            if place < n_steps:
                logits_V = by_itself.step([written[place]], [len(prompts[row]) + place])[0]
    return found
