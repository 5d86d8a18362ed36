"""An MLP that stays in 8 bits computes what its layers one by one do, and its kernels what torch does."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.decoder import Decoder
from stages.train import float8_activation
from stages.train.float8 import BACKWARD, FORWARD, Float8Linear, convert_to_float8, scale_of
from stages.train.float8_activation import GATED, KINDS, activation_by_torch, gradient_by_torch
from stages.train.float8_mlp import Float8GatedMLP, Float8PlainMLP, join_mlps, part_mlps
from stages.train.float8_trial import _broken, broken_casts, broken_mlps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = ModelConfig(hidden_size=64, n_layers=1, n_heads=2, intermediate_size=96, residual_init="normal")


def mlp_of(kind: str, eight_bits: bool, joined: bool, in_parts: bool = False) -> nn.Module:
    model = Decoder(dataclasses.replace(MODEL, mlp=kind), 256, 16)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data *= 5
    if eight_bits:
        convert_to_float8(model, "tensorwise", narrowest=64, in_parts=in_parts)
    if joined:
        assert join_mlps(model) == 1
    return model.blocks[0].mlp.to(DEVICE)


def products_of(kind: str, N: int = 80, F: int = 72) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = 2 * torch.randn(N, 2 * F if kind in GATED else F, generator=generator)
    return p.bfloat16().to(DEVICE), torch.randn(N, F, generator=generator).bfloat16().to(DEVICE)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.detach().float() - other.detach().float()).norm() / other.detach().float().norm())


def passed(mlp: nn.Module, autocast: bool = True) -> list[torch.Tensor]:
    """Output, and gradients of input and weights. Under autocast a CPU rounds 8-bit products once more."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 16, 64, generator=generator).bfloat16().to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        y = mlp(x)
    y.backward(torch.randn(y.shape, generator=generator).to(y))
    return [y.detach(), x.grad, *(parameter.grad for parameter in mlp.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_as_near_to_bf16_as_layer_by_layer(kind: str) -> None:
    joined, single, plain = (passed(mlp_of(kind, *how)) for how in ((True, True), (True, False), (False, False)))
    for one, other, exact in zip(joined, single, plain, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert apart(one, exact) < 1.1 * apart(other, exact) < 0.11


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_activation_is_that_of_autograd(kind: str) -> None:
    p, dh = products_of(kind)
    leaf = p.float().requires_grad_()
    activation_by_torch(leaf, kind).backward(dh.float())
    torch.testing.assert_close(gradient_by_torch(p, dh, kind), leaf.grad)


def test_parameters_keep_their_names_and_other_mlps_stay() -> None:
    model = Decoder(MODEL, 256, 16)
    names = list(model.state_dict())
    assert join_mlps(model) == 0  # not of 8 bits
    convert_to_float8(model, "tensorwise", narrowest=64)
    assert join_mlps(model) == 1 and type(model.blocks[0].mlp) is Float8GatedMLP
    assert list(model.state_dict()) == names
    assert type(mlp_of("relu2", True, True)) is Float8PlainMLP
    for changed, scaling in (({"bias": True}, "tensorwise"), ({}, "rowwise"), ({"n_experts": 2}, "tensorwise")):
        other = Decoder(dataclasses.replace(MODEL, **changed), 256, 16)
        convert_to_float8(other, scaling, narrowest=64)
        assert join_mlps(other) == 0


def test_without_gradients_or_with_odd_numbers_of_tokens_layers_go_one_by_one() -> None:
    joined, single = mlp_of("swiglu", True, True), mlp_of("swiglu", True, False)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(joined(x[:7]), single(x[:7]))
        expected = joined(x).detach()
        with torch.no_grad():
            assert torch.equal(joined(x), single(x))
            assert apart(joined(x), expected) < 0.06


def test_of_weights_in_parts_none_waits_in_8_bits() -> None:
    found = []
    for in_parts in (False, True):
        mlp, kept = mlp_of("swiglu", True, True, in_parts), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            found.append(passed(mlp))
        own = {parameter.data_ptr() for parameter in mlp.parameters()}
        assert (own <= {tensor.data_ptr() for tensor in kept}) is in_parts
        assert not any(tensor.dtype == FORWARD and 96 in tensor.shape for tensor in kept) or not in_parts
        assert all(tensor.shape[0] != 64 * 16 or tensor.shape[1] != 96 for tensor in kept if tensor.ndim == 2)  # no h
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_compiles_without_a_break() -> None:
    mlp = mlp_of("swiglu", True, True)
    expected = passed(mlp, autocast=False)
    for parameter in mlp.parameters():
        parameter.grad = None
    torch._dynamo.reset()
    found = passed(torch.compile(mlp, backend="aot_eager", fullgraph=True), autocast=False)
    assert all(apart(one, other) < 1e-2 for one, other in zip(found, expected, strict=True))


CHECK = """
import torch
from stages.train import float8_kernels as kernels
from tests.stages.test_train_float8_mlp import check_kernels
check_kernels(kernels)
"""


def check_kernels(kernels) -> None:
    """Against torch. Triton's interpreter errs where it rounds up to a power of two, and in the smallest numbers."""
    for kind in KINDS:
        p, dh = products_of(kind)
        h, dp = activation_by_torch(p, kind), gradient_by_torch(p, dh, kind)
        torch.testing.assert_close(kernels.look(p, None, kind), h.abs().amax(), rtol=1e-5, atol=0)
        torch.testing.assert_close(kernels.look(p, dh, kind), dp.abs().amax(), rtol=1e-5, atol=0)
        scale, h_scale = scale_of(dp.abs().amax(), BACKWARD), scale_of(h.abs().amax(), FORWARD)
        pairs = [
            (kernels.activation(p, h_scale, kind), float8_activation.activation_cast(p.cpu(), h_scale.cpu(), kind)),
            *zip(
                kernels.gradient(p, dh, scale, h_scale, kind),
                float8_activation.gradient_cast(p.cpu(), dh.cpu(), scale.cpu(), h_scale.cpu(), kind),
                strict=True,
            ),
        ]
        for name, (found, expected) in zip(("h", "p'", "p' transposed", "h transposed"), pairs, strict=True):
            found, expected = found.cpu().float(), expected.float()
            differ = found != expected
            # Where the derivative of gelu ends, torch's has lost all its digits.
            differ &= (found - expected).abs() > 1e-5 * expected.abs().max()
            if DEVICE == "cpu":
                exponent = expected.abs().log2()
                differ &= (exponent > -6) & ((exponent != exponent.round()) | (found * 2 != expected))
            wrong = list(zip(found[differ][:9].tolist(), expected[differ][:9].tolist(), strict=True))
            assert float(differ.float().mean()) < 1e-3, f"{kind} {name}: {int(differ.sum())} {wrong}"
        broken = p.clone()
        broken[3, 5] = float("nan")
        assert kernels.look(broken, None, kind).isnan() and kernels.look(broken, dh, kind).isnan()


def test_kernels_compute_what_torch_does() -> None:
    pytest.importorskip("triton")
    environment = os.environ | ({} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"})
    made = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-1000:]


TYPES = {"p_ptr": "*bf16", "dh_ptr": "*bf16", "h_ptr": "*fp8e4nv", "h_t_ptr": "*fp8e4nv", "dp_ptr": "*fp8e5",
         "dp_t_ptr": "*fp8e5", "highest_ptr": "*i32", "N": "i32"}  # fmt: skip
CONSTANTS = {"F": 4096, "LARGEST": 448.0, "LARGEST_H": 448.0, "ROWS": 64, "COLUMNS": 64, "BACK": True}


@pytest.mark.parametrize("name", ["look_over", "forward", "backward"])
def test_kernels_compile_for_a_hopper_gpu_on_any_machine(name: str) -> None:
    pytest.importorskip("triton")
    code = (
        "import triton; from triton.backends.compiler import GPUTarget; from stages.train import float8_kernels\n"
        f"f, types = float8_kernels.{name}, {TYPES}\n"
        f"for kind in {KINDS}:\n"
        f"    gate = kind in {GATED}\n"
        f"    constants = {CONSTANTS} | {{'KIND': kind, 'GATE': gate, 'P': 8192 if gate else 4096}}\n"
        "    given = {n: constants[n] for n in f.arg_names if n in constants}\n"
        "    sign = {n: 'constexpr' if n in given else types.get(n, '*fp32') for n in f.arg_names}\n"
        "    source = triton.compiler.ASTSource(fn=f, signature=sign, constexprs=given)\n"
        "    made = triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'num_warps': 4})\n"
        "    assert len(made.asm['cubin']) > 0\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]


def test_joined_layers_are_still_counted_as_8_bit_ones() -> None:
    mlp = mlp_of("swiglu", True, True)
    assert all(type(linear) is Float8Linear for linear in mlp.children())


@pytest.mark.parametrize("kind", KINDS)
def test_the_trial_finds_kernels_that_compute_wrongly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(dataclasses.replace(MODEL, mlp=kind), 256, 16)
    convert_to_float8(model, "tensorwise", narrowest=64)
    join_mlps(model)
    assert broken_casts(DEVICE) == broken_mlps(model, DEVICE) == ""
    if DEVICE == "cuda":
        return  # below, what a compiler may do

    def wrong(p, dh, kind):  # every fourth row of what is transposed
        found = gradient_by_torch(p, dh, kind)
        found[:, 1::4] = 0
        return found

    monkeypatch.setattr(float8_activation, "gradient_by_torch", wrong)
    assert broken_mlps(model, DEVICE).endswith(f" of {kind} 96 wide differs from torch's")
    part_mlps(model)
    assert broken_mlps(model, DEVICE) == "" and not isinstance(model.blocks[0].mlp, (Float8GatedMLP, Float8PlainMLP))


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2752, 4096, 1024])
def test_what_lies_transposed_is_the_same_at_the_widths_of_real_models(kind: str, width: int) -> None:
    assert _broken(kind, width, DEVICE) == ""
