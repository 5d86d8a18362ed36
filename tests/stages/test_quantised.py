"""Folders of quantised models: written, opened again, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.decoder import Decoder
from model.quantised import PackedLinear, int8, matrices, quantise
from stages.entry import plain
from stages.errors import BadInput
from stages.int8_kernel import one_row
from stages.quantised import METHODS, open_quantised, write_quantised

CONFIG = ModelConfig(n_layers=2, hidden_size=64, n_heads=4, n_kv_heads=2, n_experts=4, expert_size=32, dense_layers=1)


def written(folder: Path, method: str) -> Path:
    decoder = Decoder(CONFIG, 61, 32)
    decoder.initialise(torch.Generator().manual_seed(0))
    weights = decoder.state_dict()
    packed = quantise(weights, matrices(decoder), METHODS[method], 64)
    folder.mkdir(parents=True)
    described = {"model": plain(CONFIG), "vocab_size": 61, "context_length": 32}
    write_quantised(folder, method, described, packed, {n: t for n, t in weights.items() if n not in packed})
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_equal_weights_give_equal_bytes_and_open_again(method: str, tmp_path: Path) -> None:
    one, other = (written(tmp_path / name, method) for name in ("one", "other"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    model = open_quantised(one)
    assert isinstance(model, Decoder) and not model.training and model.has_caches
    assert model(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 61)
    described = json.loads((one / "config.json").read_text())["quantization"]
    assert described["method"] == method
    assert described["matrices"]["embedding.weight"] == {"bits": 8}
    up = {"bits": 8} if method != "int4" else {"bits": 4, "group_size": 64}
    assert described["matrices"]["blocks.1.mlp.up"] == up


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_row_by_the_kernel_is_one_row_of_many(dynamic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(33, 96, generator=generator), torch.randn(1, 96, generator=generator)
    alone = PackedLinear(int8(weight), dynamic=dynamic, one_row=one_row)(x)
    among = PackedLinear(int8(weight), dynamic=dynamic, one_row=one_row)(x.repeat(80, 1))
    assert torch.allclose(alone.expand(80, -1), among, atol=1e-4)
    assert not dynamic or not torch.allclose(alone, x @ int8(weight).dequantised().t(), atol=1e-3)


def test_the_example_of_the_kernel() -> None:
    codes, scale = torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([0.5])
    assert one_row(torch.tensor([4.0, 3.0]), codes, scale, dynamic=False).tolist() == [-1]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "int4", "int4")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.endswith("gate.scale")}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"mlp.gate.scale is missing"):
        open_quantised(folder)
    save_file({n: t for n, t in tensors.items() if "final_norm" not in n}, folder / "model.safetensors")
    with pytest.raises(BadInput, match="final_norm.weight is missing"):
        open_quantised(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadInput, match="model.safetensors"):
        open_quantised(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "millrace", "model": plain(CONFIG)}))
    with pytest.raises(BadInput, match="vocab_size is None"):
        open_quantised(folder)
    with pytest.raises(BadInput, match="config.json is not there"):
        open_quantised(tmp_path / "nowhere")
