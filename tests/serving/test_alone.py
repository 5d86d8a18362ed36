"""Our own kernels for one token: the logits are those of the decoder. Without a GPU, Triton's interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch

from serving.reader import Reader
from serving.rows import Rows, joined
from tests.model.test_decoder import decoder

pytest.importorskip("triton")

from serving.alone import SETTINGS, Alone, Setting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 4, "fused_qkv": True, "layer_pattern": "full"}
CAPACITY = 40


@pytest.mark.parametrize("settings", [
    {}, {"hidden_size": 128, "n_kv_heads": 2}, {"qk_norm": False, "fused_qkv": False},
    {"tie_embeddings": False, "logit_softcap": 5.0}, {"intermediate_size": 320},
    {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 16},
])  # fmt: skip
def test_logits_are_those_of_the_decoder(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.alone.MOST_SPLITS", 2)  # parts of several blocks
    monkeypatch.setattr("serving.alone.WIDEST", 128)  # a row in several steps
    model = decoder(**SIZES | settings).to(DEVICE)
    assert Alone.serves(model)
    caches, right = model.new_caches(1, CAPACITY), model.new_caches(1, CAPACITY)
    small = dict.fromkeys(SETTINGS, Setting(4096, 4)) | {"attention": Setting(256, 4)}
    monkeypatch.setattr("serving.alone.SETTINGS", small)
    alone = Alone(model, caches, CAPACITY, [joined(block.mlp) for block in model.blocks])
    with torch.inference_mode():
        for place in range(CAPACITY):
            token, position = (torch.tensor([[number]], device=DEVICE) for number in (place * 5 % 17 + 1, place))
            expected = model.extend(token, position, right)[0]
            if place in (0, 1, 8, 17, CAPACITY - 1):
                torch.testing.assert_close(alone.step(token, position), expected, atol=1e-4, rtol=1e-4)
            else:
                for cache, other in zip(caches, right, strict=True):
                    cache.keys.copy_(other.keys)
                    cache.values.copy_(other.values)


TYPES = {"position_ptr": "*i64", "token_ptr": "*i64", "arrived_ptr": "*i32", "eps": "fp32", "scale": "fp32",
         "row_stride": "i32"}  # fmt: skip
WEIGHTS = ("w_ptr", "gain_ptr", "query_gain_ptr", "key_gain_ptr", "keys_ptr", "values_ptr", "table_ptr")
CONSTANTS = {"NORM": True, "RESIDUAL": True, "ROWS": 4, "WIDTH": 2048, "N": 2048, "K": 5504, "H": 32, "GROUP": 2,
             "D": 64, "BLOCK": 128, "SPLITS": 8}  # fmt: skip


@pytest.mark.parametrize("name", ["embed", "product", "gated", "attention"])
@pytest.mark.parametrize("early", [True, False])
def test_kernels_compile_for_a_hopper_gpu_on_any_machine(name: str, early: bool) -> None:
    """The interpreter takes what the compiler refuses, such as a number that changes its width in a loop."""
    code = (
        "import triton, sys; from triton.backends.compiler import GPUTarget; from serving import kernels\n"
        f"f = kernels.{name}; types, constants = {TYPES}, {CONSTANTS | {'EARLY': early}}\n"
        f"types |= dict.fromkeys({WEIGHTS}, '*bf16')\n"
        "given = {n: constants[n] for n in f.arg_names if n in constants}\n"
        "sign = {n: 'constexpr' if n in given else types.get(n, '*fp32') for n in f.arg_names}\n"
        "source = triton.compiler.ASTSource(fn=f, signature=sign, constexprs=given)\n"
        "made = triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'num_warps': 8})\n"
        "print(len(made.asm['cubin']))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert int(made.stdout) > 0


@pytest.mark.parametrize("settings", [
    {"bias": True}, {"mlp": "geglu"}, {"qk_norm_scope": "full"}, {"positions": "learned"}, {"norm": "layernorm"},
    {"layer_pattern": "swa"}, {"post_norm": True}, {"intermediate_size": 100},
])  # fmt: skip
def test_other_decoders_take_the_other_ways(settings: dict) -> None:
    assert not Alone.serves(decoder(**SIZES | settings))


class Eager:
    """A recording that is none, for a machine without a GPU."""

    def __init__(self, step, inputs, positions, device):
        self.step = step
        self.run(inputs, positions)

    def run(self, inputs, positions):
        return self.step(inputs, positions)


def failing(step, inputs, positions):
    raise RuntimeError("no registers\nand more")


@pytest.mark.parametrize("broken, said", [
    (failing, "RuntimeError: no registers)"),
    (lambda *given: 1.5 * given[0](*given[1:]), "from the decoder's own)"),
    (lambda *given: torch.nan * given[0](*given[1:]), "logits are nan of the largest"),
    (lambda *given: given[0](*given[1:]), ""),
])  # fmt: skip
def test_kernels_that_fail_or_disagree_give_way_once(
    broken, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.reader.Graph", Eager)
    model = decoder(**SIZES)
    reader, right = Reader(model, 2, CAPACITY), Reader(model, 2, CAPACITY)
    reader.rows = Rows(model, CAPACITY, "false")
    reader.alone = alone = Alone(model, reader.caches, CAPACITY, reader.rows.joined)
    own = alone.step
    monkeypatch.setattr(alone, "step", lambda *given: broken(own, *given))
    for some in (reader, right):
        some.fill(0, [3, 1, 4], 0)
        some.fill(1, [1, 5], 0)
    with torch.inference_mode():
        for tokens, read in (([9], [3]), ([2], [4]), ([6, 5], [5, 2]), ([3], [6])):
            found = reader._replayed(tokens, read)
            torch.testing.assert_close(found, right.step(tokens, read), atol=1e-4, rtol=1e-4)
    assert (reader.alone is None) == bool(said)
    assert [said in record.message for record in caplog.records] == ([True] if said else [])
