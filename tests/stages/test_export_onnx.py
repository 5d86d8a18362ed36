"""The ONNX file computes what the decoder computes: whole texts, token by token through caches, padded batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.export import onnx_graph
from stages.export.check_onnx import OnnxDecoder
from stages.export.onnx_decoder import write_onnx
from tests.stages.twins import CONTEXT_LENGTH, LATENT, OURS, VOCAB_SIZE, decoder, ours_of

LATENTS = {**LATENT, "layer_pattern": "swa,mla", "window": 5, "sink_tokens": 2}
CASES = {
    **{case: OURS[case][1] for case in ("llama, biases", "qwen3, no gain, fused", "olmo2", "gemma3, windows", "gpt2")},
    **{case: OURS[case][1] for case in ("deepseek_v3, low rank", "qwen3_moe", "llama, yarn")},
    "sinks and latents": LATENTS,
    "shared experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 16},
    "dyt": {"norm": "dyt", "mlp": "relu2", "positions": "sinusoidal", "logit_softcap": 5.0},
    "no positions": {"positions": "none", "mlp": "gelu"},
}
TOLERANCE = 1e-5


def written(path: Path, changes: dict) -> torch.nn.Module:
    made = decoder(ours_of(changes))
    arrays = {name: tensor.numpy() for name, tensor in made.state_dict().items()}
    write_onnx(path, arrays, made.config, VOCAB_SIZE, CONTEXT_LENGTH, 0)
    return made


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_computes_what_the_decoder_computes(case: str, tmp_path: Path) -> None:
    made = written(tmp_path / "model.onnx", CASES[case])
    theirs = OnnxDecoder(tmp_path / "model.onnx", threads=1)
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 20))
    with torch.no_grad():
        wanted = made(torch.from_numpy(ids)).numpy()
    assert np.abs(theirs.logits(ids) - wanted).max() < TOLERANCE

    padded = np.concatenate([np.ones((2, 3), np.int64), ids], axis=1)  # on the left
    mask = (np.arange(23) >= 3).astype(np.int64)[None].repeat(2, axis=0)
    logits, past = theirs.read(padded[:, :14], mask[:, :14], theirs.empty(2))
    read = [logits[:, 3:]]
    for t in range(14, 23):
        logits, past = theirs.read(padded[:, t : t + 1], mask[:, : t + 1], past)
        read.append(logits)
    assert np.abs(np.concatenate(read, axis=1) - wanted).max() < TOLERANCE


def test_equal_weights_give_equal_bytes_and_no_path(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "model.onnx", CASES["sinks and latents"])
    content = (tmp_path / "one/model.onnx").read_bytes()
    assert content == (tmp_path / "other/model.onnx").read_bytes()
    assert str(tmp_path).encode() not in content and b".py" not in content


def test_weights_that_protobuf_cannot_hold_stand_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MOST_INLINE_BYTES", 1000)
    made = written(tmp_path / "model.onnx", {})
    assert (tmp_path / "model.onnx.data").stat().st_size > 50_000 > (tmp_path / "model.onnx").stat().st_size
    ids = np.arange(12)[None]
    with torch.no_grad():
        difference = OnnxDecoder(tmp_path / "model.onnx", 1).logits(ids) - made(torch.from_numpy(ids)).numpy()
    assert np.abs(difference).max() < TOLERANCE
