"""Every architecture of the family in every format: the largest difference of logits from our decoder in fp32.

    python -m benchmarks.export_matrix --out benchmarks/records/DATE-export-matrix.txt

Models are small and their weights, gains and biases random, so that no error can hide (tests/stages/twins.py). Rows are
24 tokens, several windows long.

    hf          transformers, its own class, or `own code`, which is our decoder itself
    onnx        onnxruntime, the whole row at once
    cached      onnxruntime, token by token through caches, behind 3 tokens of padding
    int8 ..     what the packed weights lose: random weights lose more than trained ones
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from model.decoder import Decoder
from model.quantised import PackedDecoder, matrices, quantise
from stages.export.check_onnx import OnnxDecoder
from stages.export.onnx_decoder import write_onnx
from stages.huggingface_twins import twin_of
from stages.quantised import DYNAMIC, METHODS
from tests.stages.twins import CONTEXT_LENGTH, LATENT, OURS, VOCAB_SIZE, decoder, exported, loaded, ours_of

OWN = {
    "sinks": {"layer_pattern": "swa", "window": 7, "sink_tokens": 2},
    "sinks and latents": {**LATENT, "layer_pattern": "swa,mla", "window": 7, "sink_tokens": 2},
    "shared experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 32},
    "experts, both norms": {"n_experts": 4, "expert_size": 32, "post_norm": True},
    "dyt, sinusoidal": {"norm": "dyt", "mlp": "relu2", "positions": "sinusoidal", "logit_softcap": 5.0},
    "no positions": {"positions": "none", "mlp": "gelu"},
}
TOKENS, PADDING = 24, 3


def row(made: Decoder, folder: Path) -> dict[str, str]:
    """One line of the table."""
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, TOKENS))
    inputs = torch.from_numpy(ids)
    with torch.inference_mode():
        wanted = made(inputs)
        found = {"hf": "own code"}
        if twin_of(made.config):
            found["hf"] = shown(loaded(*exported(made))(inputs, use_cache=False).logits - wanted)
        write_onnx(folder / "model.onnx", arrays(made), made.config, VOCAB_SIZE, CONTEXT_LENGTH, 0)
        theirs = OnnxDecoder(folder / "model.onnx", threads=1)
        found["onnx"] = shown(torch.from_numpy(theirs.logits(ids)) - wanted)
        found["cached"] = shown(torch.from_numpy(stepwise(theirs, ids)) - wanted)
        for name in METHODS:
            found[name] = shown(packed(made, name)(inputs) - wanted)
    return found


def shown(difference: torch.Tensor) -> str:
    return f"{float(difference.abs().max()):.1e}"


def arrays(made: Decoder) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in made.state_dict().items()}


def stepwise(theirs: OnnxDecoder, ids: np.ndarray) -> np.ndarray:
    padded = np.concatenate([np.zeros((len(ids), PADDING), np.int64), ids], axis=1)
    mask = (np.arange(padded.shape[1]) >= PADDING).astype(np.int64)[None].repeat(len(ids), axis=0)
    logits, past = theirs.read(padded[:, : PADDING + 1], mask[:, : PADDING + 1], theirs.empty(len(ids)))
    read = [logits[:, PADDING:]]
    for t in range(PADDING + 1, padded.shape[1]):
        logits, past = theirs.read(padded[:, t : t + 1], mask[:, : t + 1], past)
        read.append(logits)
    return np.concatenate(read, axis=1)


def packed(made: Decoder, method: str) -> PackedDecoder:
    weights = made.state_dict()
    parts = quantise(weights, matrices(made), METHODS[method], 32)
    plain = {name: tensor for name, tensor in weights.items() if name not in parts}
    return PackedDecoder(made.config, VOCAB_SIZE, CONTEXT_LENGTH, parts, plain, method == DYNAMIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {**{name: changes for name, (_, changes) in OURS.items()}, **OWN}
    lines = [f"{'':28}" + "".join(f"{name:>13}" for name in ("hf", "onnx", "cached", *METHODS))]
    for case, changes in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            lines.append(
                f"{case:28}" + "".join(f"{cell:>13}" for cell in row(decoder(ours_of(changes)), Path(folder)).values())
            )
        print("\n".join(lines[-2:] if len(lines) == 2 else lines[-1:]), flush=True)
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
