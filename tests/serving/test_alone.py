"""Our own kernels for one token: the logits are those of the decoder. Without a GPU, Triton's interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch

from model.decoder import Decoder
from serving.reader import Reader
from serving.rows import Rows, joined
from serving.wide import can_widen, widen
from tests.model.test_decoder import decoder

pytest.importorskip("triton")

from serving.alone import SETTINGS, Alone, Setting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"n_layers": 1, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 4, "fused_qkv": True, "layer_pattern": "full"}
CAPACITY = 40


def served(settings: dict, narrow: bool) -> Decoder:
    """As serving hands it over: in bf16 it is widened."""
    model = decoder(**SIZES | settings).to(DEVICE)
    if narrow:
        model = model.bfloat16()
        assert can_widen(model)
        widen(model)
    return model


@pytest.mark.parametrize("settings, narrow", [
    ({"n_layers": 2}, False), ({}, True), ({"head_dim": 32, "n_kv_heads": 2}, False),
    ({"head_dim": 32, "n_kv_heads": 2, "tie_embeddings": False}, True), ({"qk_norm": False, "fused_qkv": False}, False),
    ({"tie_embeddings": False, "logit_softcap": 5.0}, False), ({"intermediate_size": 320}, False),
    ({"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 16}, False),
])  # fmt: skip
def test_logits_are_those_of_the_decoder(settings: dict, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.alone.MOST_SPLITS", 2)  # parts of several blocks
    monkeypatch.setattr("serving.alone.WIDEST", 128)  # a row in several steps
    model = served(settings, narrow)
    assert Alone.serves(model)
    caches, right = model.new_caches(1, CAPACITY), model.new_caches(1, CAPACITY)
    small = dict.fromkeys(SETTINGS, Setting(8192, 4)) | {"attention": Setting(256, 4)}
    monkeypatch.setattr("serving.alone.SETTINGS", small)
    alone = Alone(model, caches, CAPACITY, [joined(block.mlp) for block in model.blocks])
    with torch.inference_mode():
        for place in range(CAPACITY):
            token, position = (torch.tensor([[number]], device=DEVICE) for number in (place * 5 % 17 + 1, place))
            expected = model.extend(token, position, right)[0]
            if place in (0, 8, CAPACITY - 1):
                found = alone.step(token, position)
                assert found.dtype == expected.dtype == torch.float32
                # sums in another order may round a number of bf16 to its neighbour
                apart = 0.02 * float(expected.abs().max()) if narrow else 1e-4
                torch.testing.assert_close(found, expected, atol=apart, rtol=0 if narrow else 1e-4)
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
    assert not Alone.serves(served(settings, narrow=False))
    assert not Alone.serves(served(settings, narrow=True))


class Eager:
    """A recording that is none, for a machine without a GPU."""

    def __init__(self, step, inputs, positions, device):
        self.step, self.device = step, device
        self.run(inputs, positions)

    def run(self, inputs, positions):
        return self.step(inputs.to(self.device), positions.to(self.device))


def failing(step, inputs, positions):
    raise RuntimeError("no registers\nand more")


def readers() -> tuple[Reader, Reader]:
    """One with our own kernels, and one by the decoder's step; two rows have read something."""
    model = decoder(**SIZES).to(DEVICE)
    reader, right = Reader(model, 2, CAPACITY), Reader(model, 2, CAPACITY)
    reader.rows = Rows(model, CAPACITY, "false")
    reader.alone = Alone(model, reader.caches, CAPACITY, reader.rows.joined)
    for some in (reader, right):
        some.fill(0, [3, 1, 4], 0)
        some.fill(1, [1, 5], 0)
    return reader, right


STEPS = (([9], [3]), ([2], [4]), ([6, 5], [5, 2]), ([3], [6]))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


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
    reader, right = readers()
    own = reader.alone.step
    monkeypatch.setattr(reader.alone, "step", lambda *given: broken(own, *given))
    with torch.inference_mode():
        for tokens, read in STEPS:
            found = reader._replayed(tokens, read)
            torch.testing.assert_close(found, right.step(tokens, read), atol=1e-4, rtol=1e-4)
    assert (reader.alone is None) == bool(said)
    assert [said in message for message in warnings(caplog)] == ([True] if said else [])


def test_own_kernels_stay_where_more_rows_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.reader.Graph", Eager)
    caplog.set_level("DEBUG", logger="millrace.serving")
    reader, right = readers()
    alone, rows = reader.alone, reader.rows
    rows.is_compiled, rows.before = True, lambda *given: failing(*given[:3])
    graphs = []
    with torch.inference_mode():
        for tokens, read in STEPS:
            found = reader._replayed(tokens, read)
            torch.testing.assert_close(found, right.step(tokens, read), atol=1e-4, rtol=1e-4)
            graphs.append(reader.graphs.get((1, CAPACITY, False)))
    assert reader.alone is alone and reader.rows is rows and not rows.is_compiled
    assert graphs[0] is not None and all(graph is graphs[0] for graph in graphs)
    assert ["RuntimeError: no registers)" in message for message in warnings(caplog)] == [True]
    assert "Traceback" in caplog.text


def test_memory_that_is_out_is_no_fault_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("serving.reader.Graph", Eager)
    reader, _ = readers()
    alone = reader.alone
    monkeypatch.setattr(alone, "step", full)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        reader._replayed([9], [3])
    assert reader.alone is alone
