"""Text per second beside transformers, on equal prompts, greedy, with equal lengths of the answers; and latencies.

    python -m benchmarks.serving                                    the default export, batch 1 and 8, on a CPU
    python -m benchmarks.serving --hidden 768 --layers 12           random weights of another size, no export needed
    python -m benchmarks.serving --device cuda --concurrent 64 --hidden 768 --layers 12     on a GPU, in bf16

Ours is the engine without HTTP. Theirs is `generate`, one request after the other, in a static batch of as many as
run at once here, padded on the left, and their continuous batching. Sides take turns, and the best round of each
counts; CPU seconds are those of the process with all its threads, for machines where others work as well. A side is
warmed up by one round first. Of more than ONE_BY_ONE requests one after the other, so many are timed and the others
are taken to last as long.

Then how long a request that joins waits, and what running together changes (benchmarks/serving_steps.py); what one
token alone costs is benchmarks/serving_alone.py. The bars at the end were set before anything was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.serving_steps import beside_and_alone, bytes_read, joining
from model.config import ModelConfig
from model.decoder import Decoder
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Request
from stages.exported import Exported, open_export
from stages.huggingface import to_huggingface

ONE_BY_ONE = 8
PEER, STATIC, CONTINUOUS = "transformers", "transformers, static batch", "transformers, continuous"


@dataclasses.dataclass(frozen=True)
class Work:
    """What is asked: prompts of unequal lengths, and how many tokens each is continued by."""

    prompts: list[list[int]]
    n_tokens: int

    @classmethod
    def drawn(cls, exported: Exported, concurrent: int, prompt_tokens: int, n_tokens: int) -> Work:
        generator = torch.Generator().manual_seed(0)
        lengths = [prompt_tokens - prompt_tokens * i // (2 * concurrent) for i in range(concurrent)]
        top = exported.model.vocab_size
        return cls([torch.randint(4, top, (n,), generator=generator).tolist() for n in lengths], n_tokens)


def ours(exported: Exported, work: Work, compiled: str) -> Callable[[], list[list[int]]]:
    reader = Reader(exported.model, len(work.prompts), exported.context_length, compiled)
    engine = Engine(reader, exported.tokenizer, chunk=1024 if exported.device == "cuda" else 256)

    def run() -> list[list[int]]:
        collected: list[list] = [[] for _ in work.prompts]
        for prompt, pieces in zip(work.prompts, collected, strict=True):
            engine.submit(Request(tuple(prompt), work.n_tokens), pieces.append)
        while not engine.idle:
            engine.step()
        return [[token.id for piece in pieces for token in piece.tokens] for pieces in collected]

    return run


def theirs(model, work: Work, kind: str) -> Callable[[], list[list[int]]]:
    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        written = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=work.n_tokens,
            min_new_tokens=work.n_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return written[:, longest:].tolist()

    if kind == STATIC:
        return lambda: generate(work.prompts)
    if kind == CONTINUOUS:
        return continuous(model, work)
    return lambda: [generate([prompt])[0] for prompt in work.prompts[:ONE_BY_ONE]]


def continuous(model, work: Work) -> Callable[[], list[list[int]]]:
    """Their continuous batching; on a CPU it wants to be told how many blocks of cache there are."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    n = work.n_tokens
    settings = GenerationConfig(do_sample=False, max_new_tokens=n, min_new_tokens=n, eos_token_id=-1, pad_token_id=0)
    blocks = sum((len(prompt) + n) // 32 + 2 for prompt in work.prompts)
    sizes = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=256) if model.device.type == "cpu" else None

    def run() -> list[list[int]]:
        found = model.generate_batch(
            work.prompts, generation_config=settings, continuous_batching_config=sizes, persistent_manager=True
        )
        texts = {tuple(one.prompt_ids): list(one.generated_tokens) for one in found.values()}
        return [texts[tuple(prompt)] for prompt in work.prompts]

    return run


def measure(sides: dict[str, Callable[[], list[list[int]]]], rounds: int, concurrent: int) -> dict[str, dict]:
    """Best seconds and CPU seconds of each side, in turns; and how many of its texts are ours."""
    found: dict[str, dict] = {name: {"seconds": 1e9, "cpu_seconds": 1e9} for name in sides}
    texts: dict[str, list[list[int]]] = {}
    for name, run in sides.items():
        try:
            texts[name] = run()  # warms up
        except Exception as problem:
            if name != CONTINUOUS:  # which asks more of a machine than the others
                raise
            print(f"{name}: {type(problem).__name__}: {problem}")
            del found[name]
    for _ in range(rounds):
        for name, run in [(name, sides[name]) for name in texts]:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best, more = found[name], concurrent / len(texts[name])
            best["seconds"] = min(best["seconds"], more * (time.perf_counter() - wall))
            best["cpu_seconds"] = min(best["cpu_seconds"], more * (time.process_time() - cpu))
    first = next(iter(texts.values()))
    for name, text in texts.items():
        found[name]["texts"] = len(text)
        found[name]["equal_texts"] = sum(a == b for a, b in zip(text, first, strict=False))
    return found


def random_export(folder: Path, hidden: int, layers: int) -> Path:
    """An export of random weights with the vocabulary of GPT-2's size, and a tokenizer of as many strings. No block is
    the identity, as `residual_init: zero` would have it: all of them would agree on everything."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models

    config = ModelConfig(
        preset="", n_layers=layers, hidden_size=hidden, n_heads=hidden // 64, n_kv_heads=hidden // 64,
        residual_init="normal",
    )  # fmt: skip
    model = Decoder(config, 50304)
    model.initialise(torch.Generator().manual_seed(0))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    settings, weights = to_huggingface(model.state_dict(), config, 50304, 1024, ids)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(models.BPE({f"{number:x} ": number for number in range(50304)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, default=Path("data/export"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the longest prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=0, help="random weights of this width, with heads of 64")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile", choices=["true", "false", "tuned"], help="our step on a GPU [default: true there]")
    arguments = parser.parse_args()
    arguments.compile = arguments.compile or str(arguments.device == "cuda").lower()
    with tempfile.TemporaryDirectory() as base:
        folder = arguments.export / "hf" if (arguments.export / "hf").is_dir() else arguments.export
        if arguments.hidden:
            folder = random_export(Path(base), arguments.hidden, arguments.layers)
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    exported = open_export(folder, arguments.device)
    dtype = exported.model.embedding.weight.dtype
    n_parameters = bytes_read(exported.model) // dtype.itemsize
    print(f"{torch.get_num_threads()} threads, {arguments.device}, {dtype}, {n_parameters:,} parameters", flush=True)
    works = [Work.drawn(exported, n, arguments.prompt, arguments.tokens) for n in arguments.concurrent]
    # Ours alone comes first: transformers' continuous batching takes what memory a GPU has left, and keeps it.
    bars = [bar for work in works if len(work.prompts) > 1 for bar in waits(exported, work, arguments)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(arguments.device).eval()
    for concurrent, work in zip(arguments.concurrent, works, strict=True):
        kinds = [PEER] if concurrent == 1 else [PEER, STATIC, CONTINUOUS]
        sides = {
            "millrace": ours(exported, work, arguments.compile),
            **{kind: theirs(model, work, kind) for kind in kinds},
        }
        found = measure(sides, arguments.rounds, concurrent)
        show(found, concurrent, arguments.tokens)
        bars += throughput_bars(found, concurrent, arguments.device)
    for about, value, bar, met in bars:
        print(f"{'met   ' if met else 'MISSED'}  {about}: {value:.3g} ({bar})")


def show(found: dict[str, dict], concurrent: int, n_tokens: int) -> None:
    for name, best in found.items():
        ratio = {key: best[key] / found["millrace"][key] for key in ("seconds", "cpu_seconds")}
        print(
            f"{concurrent:3} at once  {name:26} {concurrent * n_tokens / best['seconds']:8.1f} tokens/s  "
            f"{best['seconds']:7.2f} s ({ratio['seconds']:.2f}x ours)  CPU {best['cpu_seconds']:7.2f} s "
            f"({ratio['cpu_seconds']:.2f}x)  {best['equal_texts']} of {best['texts']} texts equal", flush=True,
        )  # fmt: skip


def throughput_bars(found: dict[str, dict], concurrent: int, device: str) -> list[tuple[str, float, str, bool]]:
    """How often theirs takes as long as ours, beside what was asked for."""
    least = {PEER: 10.0, STATIC: 2.0, CONTINUOUS: 2.0} if device == "cuda" else {PEER: 3.0 if concurrent > 1 else 1.5}
    if device == "cuda" and concurrent < 64:
        return []
    ratios = {name: best["seconds"] / found["millrace"]["seconds"] for name, best in found.items()}
    return [
        (f"{concurrent} at once, beside {name}", ratios[name], f"at least {bar:g}x", ratios[name] >= bar)
        for name, bar in least.items()
        if name in ratios
    ]


def waits(exported: Exported, work: Work, arguments: argparse.Namespace) -> list[tuple[str, float, str, bool]]:
    """Of who joins; and whether those who run together are told the same."""
    n = len(work.prompts)
    wait = joining(exported, work.prompts[0], n, 15, arguments.compile)
    print(f"{n:3} at once  first token after {wait['alone_ms']:.1f} ms alone, {wait['joined_ms']:.1f} ms joining")
    most = 2 * wait["alone_ms"] + 20
    told = beside_and_alone(exported, work.prompts, 32, 8, arguments.compile)
    print(f"{n:3} at once  logits differ from alone by {told['logit']:.2g} of the largest; {told['others']:g} "
          f"other tokens, whose lead was {told['lead']:.2g} of it at most", flush=True)  # fmt: skip
    near = 2e-2 if arguments.device == "cuda" else 1e-4
    return [
        (f"first token beside {n - 1}, ms", wait["joined_ms"], f"at most {most:.1f}", wait["joined_ms"] <= most),
        (f"logits of {n} beside alone", told["logit"], f"within {near:g}", max(told["logit"], told["lead"]) <= near),
    ]


if __name__ == "__main__":
    main()
