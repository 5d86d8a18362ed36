"""Text per second beside transformers, on equal prompts, greedy, with equal lengths of the answers.

    python -m benchmarks.serving                                    the default export, batch 1 and 8, on a CPU
    python -m benchmarks.serving --hidden 768 --layers 12           random weights of another size
    python -m benchmarks.serving --device cuda --concurrent 64      on a GPU, in bf16

Ours is the engine without HTTP. Theirs is `generate`, one request
after the other, and in static batches of as many as run at once here, padded on the left. Sides take turns, and the
best round of each counts; CPU seconds are those of the process with all its threads, for machines where others work
as well. A side is warmed up by one request first.
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

from model.config import ModelConfig
from model.decoder import Decoder
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Request
from stages.exported import Exported, open_export
from stages.huggingface import to_huggingface


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


def ours(exported: Exported, work: Work) -> Callable[[], list[list[int]]]:
    engine = Engine(Reader(exported.model, len(work.prompts), exported.context_length), exported.tokenizer)

    def run() -> list[list[int]]:
        collected: list[list] = [[] for _ in work.prompts]
        for prompt, pieces in zip(work.prompts, collected, strict=True):
            engine.submit(Request(tuple(prompt), work.n_tokens), pieces.append)
        while not engine.idle:
            engine.step()
        return [[token.id for piece in pieces for token in piece.tokens] for pieces in collected]

    return run


def theirs(model, work: Work, batched: bool) -> Callable[[], list[list[int]]]:
    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        written = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=work.n_tokens,
            min_new_tokens=work.n_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return written[:, longest:].tolist()

    if batched:
        return lambda: generate(work.prompts)
    return lambda: [generate([prompt])[0] for prompt in work.prompts]


def measure(sides: dict[str, Callable[[], list[list[int]]]], rounds: int) -> dict[str, dict]:
    """Best seconds and CPU seconds of each side, in turns; and how many of its texts are ours."""
    found: dict[str, dict] = {name: {"seconds": 1e9, "cpu_seconds": 1e9} for name in sides}
    texts = {name: run() for name, run in sides.items()}  # warms up
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best = found[name]
            best["seconds"] = min(best["seconds"], time.perf_counter() - wall)
            best["cpu_seconds"] = min(best["cpu_seconds"], time.process_time() - cpu)
    first = next(iter(texts.values()))
    for name, text in texts.items():
        found[name]["equal_texts"] = sum(a == b for a, b in zip(text, first, strict=True))
    return found


def random_export(folder: Path, hidden: int, layers: int, like: Path) -> Path:
    """An export of random weights, with the tokenizer of another one and the vocabulary of GPT-2's size."""
    from safetensors.torch import save_file

    config = ModelConfig(preset="", n_layers=layers, hidden_size=hidden, n_heads=hidden // 64, n_kv_heads=hidden // 64)
    model = Decoder(config, 50304)
    model.initialise(torch.Generator().manual_seed(0))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    settings, weights = to_huggingface(model.state_dict(), config, 50304, 1024, ids)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_bytes((like / "tokenizer.json").read_bytes())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, default=Path("data/export"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the longest prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        folder = arguments.export / "hf" if (arguments.export / "hf").is_dir() else arguments.export
        if arguments.hidden:
            folder = random_export(Path(base), arguments.hidden, arguments.layers, folder)
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    exported = open_export(folder, arguments.device)
    dtype = exported.model.embedding.weight.dtype
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(arguments.device).eval()
    print(f"{torch.get_num_threads()} threads, {dtype}, {sum(p.numel() for p in model.parameters()):,} parameters")
    for concurrent in arguments.concurrent:
        work = Work.drawn(exported, concurrent, arguments.prompt, arguments.tokens)
        sides = {"millrace": ours(exported, work), "transformers": theirs(model, work, False)}
        if concurrent > 1:
            sides["transformers, static batch"] = theirs(model, work, True)
        found = measure(sides, arguments.rounds)
        for name, best in found.items():
            ratio = {key: best[key] / found["millrace"][key] for key in ("seconds", "cpu_seconds")}
            rate = concurrent * arguments.tokens / best["seconds"]
            print(
                f"{concurrent:3} at once  {name:26} {rate:8.1f} tokens/s  {best['seconds']:7.2f} s "
                f"({ratio['seconds']:.2f}x ours)  CPU {best['cpu_seconds']:7.2f} s ({ratio['cpu_seconds']:.2f}x)  "
                f"{best['equal_texts']} of {concurrent} texts equal"
            )


if __name__ == "__main__":
    main()
