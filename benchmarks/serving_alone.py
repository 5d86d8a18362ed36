"""One sequence alone, where nothing hides what a token costs. Random weights, without HTTP; bf16 on a GPU.

    python -m benchmarks.serving_alone --hidden 2048 --layers 18 --compile tuned --beside    1.01B
    python -m benchmarks.serving_alone --hidden 768 --layers 12 --guesses --failure          124M
    python -m benchmarks.serving_alone --hidden 768 --layers 12 --plain                      without our own kernels
    OMP_NUM_THREADS=2 python -m benchmarks.serving_alone --device cpu --compile false        124M, fp32

    step       ms a token for each `--compile`, kernels (operations on a CPU), and what reading the weights takes at
               4.26 TB/s, on a CPU at what as many threads read
    kernels    which they are and how long each lasts, of the fastest step
    beside     how far logits beside 63 others are from those alone, and those alone from the same weights in fp32;
               64 rows are compiled as `--beside` says
    guesses    `--lookup 8`: tokens per second with and without, and whether they are the same
    failure    a step that cannot be compiled while requests run: each is answered all the same

Bars, on an H200: 124M at most 0.35 ms, 1.01B at most 1.5 times its bytes / 4.26 TB/s.
"""

from __future__ import annotations

import argparse
import collections
import copy
import itertools
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models
from torch.profiler import ProfilerActivity, profile

from benchmarks.serving_steps import beside_and_alone, bytes_read, step_costs
from model.config import ModelConfig
from model.decoder import Decoder
from model.reordered import ReorderedDecoder
from serving import reader as reader_module
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Request
from stages.exported import Exported

VOCABULARY, CONTEXT = 50304, 1024


def drawn(hidden: int, layers: int, device: str, dtype: torch.dtype) -> Exported:
    """A decoder of random weights made where it runs; no block is the identity."""
    config = ModelConfig(
        preset="", n_layers=layers, hidden_size=hidden, n_heads=max(hidden // 64, 1), n_kv_heads=max(hidden // 64, 1),
        residual_init="normal",
    )  # fmt: skip
    with torch.device(device):
        model = Decoder(config, VOCABULARY, CONTEXT)
        model.initialise(torch.Generator(device).manual_seed(0))
    tokenizer = Tokenizer(models.BPE({f"{number:x} ": number for number in range(VOCABULARY)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    model = model.requires_grad_(False).to(dtype).eval()
    if device == "cpu":  # as an export is opened
        model = ReorderedDecoder(config, VOCABULARY, CONTEXT, dict(model.state_dict()))
    return Exported("drawn", model, tokenizer, tokenizer, frozenset(), "", "", CONTEXT)


def steps(exported: Exported, kinds: list[str], n_steps: int) -> None:
    small = bytes_read(exported.model) < 1e9
    for compiled in kinds:
        torch._dynamo.reset()
        cost = step_costs(exported, PROMPT, n_steps, compiled)
        most = 0.35 if small else 1.5 * cost["limit_ms"]
        bar = f"; {'met' if cost['step_ms'] <= most else 'MISSED'} (at most {most:.3f} ms)"
        bar = bar if exported.device == "cuda" else ""
        own = " by our own kernels" if cost["own"] else ""
        print(
            f"--compile {compiled:6} step {cost['step_ms']:.3f} ms a token{own}, "
            f"{cost['engine_ms']:.3f} with the engine; {cost['kernels']} kernels or operations in "
            f"{cost['launches']} launches; {cost['megabytes']:.0f} MB at "
            f"{cost['gigabytes_per_second']:.1f} GB/s {cost['limit_ms']:.3f} ms: "
            f"{cost['step_ms'] / cost['limit_ms']:.2f} times that{bar}; {cost['first_seconds']:.1f} s at first",
            flush=True,
        )  # fmt: skip


def kernels(exported: Exported, compiled: str) -> None:
    """Kernels of one step by name: how many, and microseconds of each."""
    torch._dynamo.reset()
    reader = Reader(exported.model, 1, CONTEXT, compiled)
    reader.fill(0, PROMPT, 0)
    reader.step([1], [len(PROMPT)])
    graph = next(iter(reader.graphs.values())).graph
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
    found = sorted((e for e in seen.events() or [] if e.device_type.name == "CUDA"), key=lambda e: e.time_range.start)
    found = found[-(len(found) // 3) :]
    times = collections.defaultdict(list)
    for event in found:
        times[event.name].append(event.time_range.elapsed_us())
    whole = found[-1].time_range.end - found[0].time_range.start
    busy = sum(map(sum, times.values()))
    print(
        f"kernels of one step, --compile {compiled}: {len(found)}, {whole:.0f} us from first to last, {busy:.0f} busy"
    )
    for name, spans in sorted(times.items(), key=lambda item: -sum(item[1])):
        print(f"  {sum(spans):7.1f} us  {len(spans):4} x {sum(spans) / len(spans):6.2f}  {name[:110]}")
    print("  order:", " | ".join(e.name[:40] for e in found[len(found) // 2 : len(found) // 2 + 14]), flush=True)


@torch.inference_mode()
def beside(exported: Exported, rows: str) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(4, VOCABULARY, (64 - i // 2,), generator=generator).tolist() for i in range(64)]
    exact = copy.deepcopy(exported.model).float()
    for compiled in dict.fromkeys((rows, "false")):
        torch._dynamo.reset()
        reader, right = Reader(exported.model, 1, CONTEXT, compiled), Reader(exact, 1, CONTEXT)
        apart = 0.0
        for place in range(8):
            read = [PROMPT[place]], [place]
            found, wanted = reader.step(*read).float(), right.step(*read)
            apart = max(apart, float((found - wanted).abs().max() / wanted.abs().max()))
        print(f"--compile {compiled}: logits alone are {apart:.3g} of the largest from those in fp32", flush=True)
    del exact, right, reader
    torch._dynamo.reset()
    found = beside_and_alone(exported, prompts, 32, 8, rows)
    print(
        f"--compile {rows}: logits beside 63 differ from alone by {found['logit']:.3g} of the largest (bar 0.02); "
        f"{found['others']:g} other tokens, whose lead was {found['lead']:.2g} of it at most", flush=True,
    )  # fmt: skip


def guesses(exported: Exported, n_tokens: int, compiled: str) -> None:
    """Greedy text of random weights repeats itself soon: nearly every guess is right. A prompt of its own measures
    the other end."""
    for about, prompt in (("random prompt", PROMPT), ("prompt that repeats", (PROMPT[:8] * 8)[:64])):
        texts, seconds = [], []
        for lookup in (0, 8):
            engine = Engine(Reader(exported.model, 1, CONTEXT, compiled), exported.tokenizer, lookup=lookup)
            for _ in range(2):  # the first records graphs
                text, took = answered(engine, prompt, n_tokens)
            texts.append(text)
            seconds.append(took)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=True)))
        lead = lead_at(exported, [*prompt, *texts[0][:same]]) if same < n_tokens else 0.0
        print(
            f"--lookup 8, {exported.model.embedding.weight.dtype}, {about}: {n_tokens / seconds[0]:.1f} tokens/s "
            f"without, {n_tokens / seconds[1]:.1f} with ({seconds[0] / seconds[1]:.2f}x); the first {same} of "
            f"{n_tokens} tokens are the same, then the best led by {lead:.2g} of the largest logit; "
            f"{engine.right} of {engine.guessed} guesses right", flush=True,
        )  # fmt: skip


def answered(engine: Engine, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    pieces: list = []
    begun = time.perf_counter()
    engine.submit(Request(tuple(prompt), n_tokens), pieces.append)
    while not engine.idle:
        engine.step()
    return [token.id for piece in pieces for token in piece.tokens], time.perf_counter() - begun


@torch.inference_mode()
def lead_at(exported: Exported, ids: list[int]) -> float:
    logits_V = Reader(exported.model, 1, CONTEXT).fill(0, ids, 0).float()
    best, second = logits_V.topk(2).values.tolist()
    return (best - second) / float(logits_V.abs().max())


def failure(exported: Exported, n_tokens: int) -> None:
    """The compiler fails at a number of rows that it has not seen, while a request runs: before anything is recorded,
    and in the midst of a recording. Texts are compared with those of a step that was never compiled."""

    def run(compiled: str, broken_call: int) -> list[list[int]]:
        torch._dynamo.reset()
        engine = Engine(Reader(exported.model, 4, CONTEXT, compiled), exported.tokenizer)
        pieces: list[list] = [[] for _ in range(4)]
        engine.submit(Request(tuple(PROMPT), 2 * n_tokens), pieces[0].append)
        for _ in range(n_tokens // 2):
            engine.step()
        if broken_call:
            assert engine.reader.rows is not None
            engine.reader.rows.before = failing(engine.reader.rows.before, broken_call)
        for number in range(1, 4):
            engine.submit(Request(tuple(PROMPT[number:]), n_tokens), pieces[number].append)
        while not engine.idle:
            engine.step()
        if broken_call and engine.reader.rows.is_compiled:
            raise SystemExit("the step did not fail")
        ends = {some[-1].finish for some in pieces}
        print(f"  a compile that fails at call {broken_call}: 4 requests ended by {ends}")
        return [[token.id for piece in some for token in piece.tokens] for some in pieces]

    right = run("false", 0)
    n_layers = len(exported.model.blocks)
    in_recording = reader_module.WARM_UPS * n_layers + 2
    for broken_call in (1, in_recording):
        found = run("true", broken_call)
        same = sum(a == b for a, b in zip(right, found, strict=True))
        print(f"a compile that fails at call {broken_call}: {same} of 4 texts as without compiling", flush=True)


def failing(function: Callable, at: int) -> Callable:
    calls = itertools.count(1)

    def call(*arguments: object) -> object:
        if next(calls) == at:
            raise RuntimeError("no compiler")
        return function(*arguments)

    return call


PROMPT = torch.randint(4, VOCABULARY, (64,), generator=torch.Generator().manual_seed(0)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try this script")
    parser.add_argument("--compile", nargs="+", default=["tuned", "true", "false"])
    parser.add_argument("--kernels", nargs="*", default=["tuned"], help="of these, which kernels there are")
    parser.add_argument("--beside", nargs="?", const="true", choices=["true", "tuned", "false"])
    parser.add_argument("--plain", action="store_true", help="as for decoders that our own kernels do not serve")
    parser.add_argument("--guesses", action="store_true")
    parser.add_argument("--failure", action="store_true")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if arguments.plain:
        Reader._alone = lambda self, rows: None  # type: ignore[method-assign]
    exported = drawn(arguments.hidden, arguments.layers, arguments.device, torch.bfloat16 if on_gpu else torch.float32)
    n_parameters = bytes_read(exported.model) // exported.model.embedding.weight.element_size()
    about = torch.cuda.get_device_name() if on_gpu else "a CPU"
    print(f"{about}, torch {torch.__version__}, {n_parameters:,} parameters", flush=True)
    steps(exported, arguments.compile if on_gpu else ["false"], arguments.tokens)
    for compiled in arguments.kernels if on_gpu else []:
        kernels(exported, compiled)
    if arguments.beside and on_gpu:
        beside(exported, arguments.beside)
    if arguments.guesses:
        guesses(exported, 2 * arguments.tokens, "true" if on_gpu else "false")
        if on_gpu:
            exact = drawn(arguments.hidden, arguments.layers, arguments.device, torch.float32)
            guesses(exact, 2 * arguments.tokens, "true")
    if arguments.failure and on_gpu:
        failure(drawn(256, 3, arguments.device, torch.float32), 32)


if __name__ == "__main__":
    main()
