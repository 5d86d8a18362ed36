"""Our own kernels for one token: the logits are those of the decoder. Without a GPU, Triton's interpreter runs them."""

import os

import pytest
import torch

from serving.rows import joined
from tests.model.test_decoder import decoder

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from serving.kernels import Kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"n_layers": 1, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "fused_qkv": True, "layer_pattern": "full"}
CAPACITY = 40


@pytest.mark.parametrize("settings", [{}, {"n_kv_heads": 4}, {"tie_embeddings": False, "logit_softcap": 5.0}])
def test_logits_are_those_of_the_decoder(settings: dict) -> None:
    model = decoder(**SIZES | settings).to(DEVICE)
    assert Kernels.serves(model)
    caches, right = model.new_caches(1, CAPACITY), model.new_caches(1, CAPACITY)
    kernels = Kernels(model, caches, CAPACITY, [joined(block.mlp) for block in model.blocks])
    with torch.inference_mode():
        for place in range(4):
            token, position = (torch.tensor([[number]], device=DEVICE) for number in (place * 5 % 17 + 1, place))
            expected = model.extend(token, position, right)[0]
            torch.testing.assert_close(kernels.step(token, position), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [
    {"bias": True}, {"mlp": "geglu"}, {"qk_norm": False}, {"positions": "learned"}, {"norm": "layernorm"},
    {"layer_pattern": "swa,full"}, {"post_norm": True}, {"fused_qkv": False},
])  # fmt: skip
def test_other_decoders_take_the_other_ways(settings: dict) -> None:
    assert not Kernels.serves(decoder(**SIZES | settings))
