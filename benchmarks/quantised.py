"""Decoding one token at a time on a CPU: fp32, int8, int8_dynamic and int4 side by side, in one run.

    python -m benchmarks.quantised                 # 124M parameters, a minute on one core
    python -m benchmarks.quantised --preset tiny   # the same code in seconds

Weights are random: speed does not depend on them. Models take turns, a token each, and the fewest CPU seconds of
a token count (with --threads, seconds), so that a busy machine slows all alike. Sizes are those of what a folder holds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.config import ModelConfig
from model.decoder import Decoder
from model.quantised import PackedDecoder, matrices, quantise
from stages.int8_kernel import one_row
from stages.quantised import DYNAMIC, METHODS

VOCABULARY, CONTEXT = 50304, 1024


def models(config: ModelConfig, group_size: int) -> tuple[dict[str, Decoder], dict[str, dict[str, float]]]:
    """The same weights four times, and what they take: MB, and the linear layers' part of bf16's bytes."""
    plain = Decoder(config, VOCABULARY, CONTEXT).eval().requires_grad_(False)
    plain.initialise(torch.Generator().manual_seed(0))
    weights, names = plain.state_dict(), matrices(plain)
    made: dict[str, Decoder] = {"fp32": plain}
    sizes = {"fp32": {"mb": sum(t.nbytes for t in weights.values()) / 1e6, "of_bf16": 2.0}}
    for name, bits in METHODS.items():
        packed = quantise(weights, names, bits, group_size)
        rest = {key: tensor for key, tensor in weights.items() if key not in packed}
        made[name] = PackedDecoder(config, VOCABULARY, CONTEXT, packed, rest, name == DYNAMIC, one_row)
        linear = [key for key in names if key != "embedding.weight"]
        of_bf16 = sum(packed[k].n_bytes for k in linear) / sum(2 * weights[k].numel() for k in linear)
        n_bytes = sum(part.n_bytes for part in packed.values()) + sum(t.nbytes for t in rest.values())
        sizes[name] = {"mb": n_bytes / 1e6, "of_bf16": of_bf16}
    return made, sizes


@torch.inference_mode()
def seconds_a_token(made: dict[str, Decoder], n_tokens: int, clock: Callable[[], float]) -> dict[str, float]:
    caches = {name: model.new_caches(1, n_tokens) for name, model in made.items()}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for position in range(n_tokens):
        for name, model in made.items():
            started = clock()
            model.extend(torch.tensor([[position]]), torch.tensor([[position]]), caches[name])
            taken[name].append(clock() - started)
    return {name: min(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2-124m")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--out", help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    made, sizes = models(ModelConfig(preset=options.preset), options.group_size)
    seconds = seconds_a_token(made, options.tokens, clock)
    figures = {
        name: {**sizes[name], "ms_a_token": 1e3 * seconds[name], "speed_up": seconds["fp32"] / seconds[name]}
        for name in made
    }
    for name, row in figures.items():
        print(f"{name:12}", "  ".join(f"{key} {value:8.3f}" for key, value in row.items()))
    if options.out:
        record = {"preset": options.preset, "threads": options.threads, "figures": figures}
        Path(options.out).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
