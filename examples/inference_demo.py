"""Text from an export in Python, without a server: open it, ask the engine, print pieces as they come.

python examples/inference_demo.py data/export "Returns the number of"
"""

from __future__ import annotations

import sys

from model.sampling import Sampling
from serving.engine import Engine
from serving.reader import Reader
from serving.request import Piece, Request
from stages.exported import open_export


def main(place: str, *prompts: str) -> None:
    exported = open_export(place)  # on a CPU; open_export(place, "cuda") on a GPU
    engine = Engine(Reader(exported.model, n_rows=len(prompts), capacity=exported.context_length), exported.tokenizer)
    answers = ["" for _ in prompts]
    for number, prompt in enumerate(prompts):

        def collect(piece: Piece, number: int = number) -> None:
            answers[number] += piece.text

        sampling = Sampling(temperature=0.8, top_p=0.95)
        engine.submit(Request(tuple(exported.encode(prompt)), 40, sampling, seed=0, ends=exported.ends), collect)
    while not engine.idle:  # every step is one token for each prompt
        engine.step()
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"{prompt}|{answer}\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] if len(sys.argv) > 2 else ("data/export", "Returns the number of", "Computes the")))
