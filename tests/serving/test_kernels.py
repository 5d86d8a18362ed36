"""Our own kernels for one token: the logits are those of the decoder. Without a GPU, Triton's interpreter runs them."""

import os
import subprocess
import sys

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


TYPES = {"position_ptr": "*i64", "cosine_ptr": "*fp32", "sine_ptr": "*fp32", "eps": "fp32", "scale": "fp32", "N": "i32",
         "row_stride": "i32"}  # others point at bf16  # fmt: skip
CONSTANTS = {"NORM": True, "RESIDUAL": True, "ROWS": 2, "WIDTH": 2048, "K": 2048, "H": 16, "GROUP": 2, "D": 64,
             "BLOCK": 128}  # fmt: skip


@pytest.mark.parametrize("name", ["matvec", "gated", "attention"])
@pytest.mark.parametrize("early", [True, False])
def test_kernels_compile_for_a_hopper_gpu_on_any_machine(name: str, early: bool) -> None:
    """The interpreter takes what the compiler refuses, such as a number that changes its width in a loop."""
    code = (
        "import triton, sys; from triton.backends.compiler import GPUTarget; from serving import kernels\n"
        f"f = kernels.{name}; types, constants = {TYPES}, {CONSTANTS | {'EARLY': early}}\n"
        "given = {n: constants[n] for n in f.arg_names if n in constants}\n"
        "sign = {n: 'constexpr' if n in given else types.get(n, '*bf16') for n in f.arg_names}\n"
        "source = triton.compiler.ASTSource(fn=f, signature=sign, constexprs=given)\n"
        "made = triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'num_warps': kernels.WARPS})\n"
        "print(len(made.asm['cubin']))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert int(made.stdout) > 0


@pytest.mark.parametrize("settings", [
    {"bias": True}, {"mlp": "geglu"}, {"qk_norm": False}, {"positions": "learned"}, {"norm": "layernorm"},
    {"layer_pattern": "swa"}, {"post_norm": True}, {"fused_qkv": False},
])  # fmt: skip
def test_other_decoders_take_the_other_ways(settings: dict) -> None:
    assert not Kernels.serves(decoder(**SIZES | settings))
