"""Kernels that do what follows a product compute what the plain ones do, and are taken only where they can be."""

import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from torch.nn import functional as F

from model.config import ModelConfig
from model.decoder import Decoder
from stages.errors import BadInput
from stages.execution import Execution
from stages.tokens import IGNORED_LABEL
from stages.train import float8, fused
from stages.train.cross_entropy import LossTerms, chunked_cross_entropy
from stages.train.feasible import infeasible
from stages.train.float8 import scaled_both
from stages.train.fused import tell_fused, wants_fused
from stages.train.fused_mlp import FusedGatedMLP, FusedPlainMLP, fuse_mlps
from stages.train.objective import CausalObjective
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.scaled_cross_entropy import scaled_cross_entropy, suits

CPU, GPU = Ranks(0, 1, "cpu"), Ranks(0, 1, "cuda")
MODEL = ModelConfig(hidden_size=64, n_layers=2, n_heads=2, intermediate_size=96, residual_init="scaled")
HAS_QUACK = torch.cuda.is_available() and importlib.util.find_spec("quack") is not None
needs_quack = pytest.mark.skipif(not HAS_QUACK, reason="needs a Hopper GPU and quack-kernels")

PLAIN = {"gelu_tanh_approx": lambda p: F.gelu(p, approximate="tanh"), "relu_sq": lambda p: F.relu(p).square()}


def activation_of(product: torch.Tensor, name: str) -> torch.Tensor:
    if name == "swiglu":
        return F.silu(product[:, 0::2]) * product[:, 1::2]
    return PLAIN[name](product)


def gemm_act(A, B, activation, config):
    product = A.float() @ B.float()
    return product.to(A.dtype), activation_of(product, activation).to(A.dtype)


def gemm_dact(A, B, PreAct, activation, config, dynamic_scheduler):
    gradient, p = A.float() @ B.float(), PreAct.float()
    if activation == "swiglu":
        gate, up = p[:, 0::2], p[:, 1::2]
        d_gate, d_up = torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)
        found = torch.stack((d_gate, d_up), dim=2).flatten(1)
    elif activation == "relu_sq":
        found = gradient * 2 * F.relu(p)
    else:
        found = torch.ops.aten.gelu_backward(gradient, p, approximate="tanh")
    return found.to(A.dtype), activation_of(p, activation).to(A.dtype)


def scaled_exp_linear_cross_entropy_fwd(x, weight, target, chunk_size, ignore_index):
    """As quack does it: the last chunk filled up to whole tiles, rows behind it 0."""
    rows = -(-len(x) // 128) * 128
    with torch.enable_grad():
        hidden, head = (y.detach().float().requires_grad_() for y in (x, weight))
        nats = F.cross_entropy(hidden @ head.t(), target, ignore_index=ignore_index, reduction="none")
        nats.sum().backward()
    filled = F.pad(hidden.grad, (0, 0, 0, rows - len(x)))
    return F.pad(nats.detach(), (0, rows - len(x))), filled.to(x.dtype), head.grad


@pytest.fixture
def stand_in(monkeypatch):
    """quack's functions by their signatures, in torch: the package itself needs a GPU to be imported."""
    if HAS_QUACK:
        pytest.skip("the package itself is here")
    parts = {
        "quack": types.ModuleType("quack"),
        "quack.gemm_interface": types.SimpleNamespace(gemm_act=gemm_act, gemm_dact=gemm_dact),
        "quack.gemm_config": types.SimpleNamespace(GemmConfig=lambda **_: None),
        "quack.linear_cross_entropy": types.SimpleNamespace(
            scaled_exp_linear_cross_entropy_fwd=scaled_exp_linear_cross_entropy_fwd
        ),
    }
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, name, part)


def decoder(mlp: str, device: str = "cpu") -> Decoder:
    model = Decoder(dataclasses.replace(MODEL, mlp=mlp), 256, 16)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # outputs that are not zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model.to(device).train()


def pass_of(model: Decoder, by_fused: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of 8 rows and its gradients, as training computes them."""
    device = next(model.parameters()).device.type
    inputs = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(2)).to(device)
    labels = inputs.roll(-1, 1).clone()
    labels[:, -1] = IGNORED_LABEL
    objective = CausalObjective(model, chunk_tokens=128, fused=by_fused)
    assert objective.fused is by_fused
    segments, positions = torch.zeros_like(inputs), torch.arange(16, device=device).expand(8, 16)
    with torch.autocast(device, torch.bfloat16):
        total, nats = objective(inputs, labels, segments, positions)
    total.backward()
    assert float(total.detach()) == float(nats)
    return float(nats) / 120, {name: p.grad.float().cpu() for name, p in model.named_parameters()}


def compare(mlp: str, device: str) -> None:
    plain, joined = decoder(mlp, device), decoder(mlp, device)
    names = list(plain.state_dict())
    assert fuse_mlps(joined) == 2
    assert type(joined.blocks[0].mlp) is (FusedGatedMLP if mlp == "swiglu" else FusedPlainMLP)
    assert list(joined.state_dict()) == names
    (loss, expected), (other_loss, found) = pass_of(plain, False), pass_of(joined, True)
    assert other_loss == pytest.approx(loss, abs=2e-3)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 0.02, name
    with torch.no_grad():  # validation: the same kernels as ever
        inputs = torch.zeros(1, 4, dtype=torch.int64, device=device)
        assert torch.equal(joined(inputs), plain(inputs))


@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
def test_gradients_are_those_of_the_plain_mlp_and_loss(stand_in, mlp):
    compare(mlp, "cpu")


@needs_quack
@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
def test_the_kernels_themselves(mlp):
    compare(mlp, "cuda")


@needs_quack
@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
def test_the_trial_before_training_takes_kernels_that_work(mlp):
    assert fused._does_not_work("cuda", mlp) == ""


@needs_quack
def test_the_loss_without_logits_is_that_of_fp32():
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(500, 256, generator=generator, device="cuda").bfloat16()
    head = torch.randn(1024, 256, generator=generator, device="cuda").bfloat16() * 0.1
    labels = torch.randint(0, 1024, (500,), generator=generator, device="cuda")
    labels[::7] = IGNORED_LABEL
    found = []
    for way in ("fp32", "chunks", "scaled"):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if way == "fp32":
            loss = F.cross_entropy(h.float() @ w.float().t(), labels, reduction="sum", ignore_index=IGNORED_LABEL)
        elif way == "chunks":
            loss, _ = chunked_cross_entropy(h, w, labels, LossTerms(1024), 128)
        else:
            loss = scaled_cross_entropy(h, w, labels, 128)
        loss.backward()
        found.append((float(loss.detach()), h.grad.float(), w.grad.float()))
    for loss, d_hidden, d_head in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        assert float((d_hidden - found[0][1]).norm() / found[0][1].norm()) < 0.01
        assert float((d_head - found[0][2]).norm() / found[0][2].norm()) < 0.01


def test_what_the_kernels_do_not_know_stays_plain():
    geglu = decoder("geglu")
    assert fuse_mlps(geglu) == 0  # quack's is the approximate one
    biased = Decoder(dataclasses.replace(MODEL, bias=True), 256, 16)
    assert fuse_mlps(biased) == 0
    narrow = Decoder(dataclasses.replace(MODEL, intermediate_size=72), 256, 16)
    assert fuse_mlps(narrow) == 0  # 32 does not divide 72
    eight = decoder("swiglu")
    float8.convert_to_float8(eight, "tensorwise", narrowest=64)
    assert fuse_mlps(eight) == 0


def test_a_loss_with_more_than_cross_entropy_goes_in_plain_chunks():
    model = decoder("swiglu")
    assert suits(model, LossTerms(256), 128)
    assert not suits(model, LossTerms(256), 0)
    assert not suits(model, LossTerms(256), 100)
    for terms in (LossTerms(256, softcap=3.0), LossTerms(256, z_loss=1e-4), LossTerms(256, label_smoothing=0.1)):
        assert not suits(model, terms, 128)
    padded = Decoder(MODEL, 250, 16)  # six rows of the head are of no token
    assert not suits(padded, LossTerms(250), 128)


def test_versions_that_do_not_go_together_are_found_before_the_first_step(stand_in, monkeypatch):
    def broken(*_, **__):
        raise TypeError("no fail-closed\nsemantic key")

    def wrong(A, B, activation, config):
        product, h = gemm_act(A, B, activation, config)
        return product, h * 1.1

    interface = sys.modules["quack.gemm_interface"]
    for mlp in ("swiglu", "relu2", "geglu"):
        assert fused._does_not_work.__wrapped__("cpu", mlp) == ""
    monkeypatch.setattr(interface, "gemm_dact", broken)
    told = fused._does_not_work.__wrapped__("cpu", "gelu")
    assert told == "quack-kernels does not work here: TypeError: no fail-closed semantic key"
    monkeypatch.setattr(interface, "gemm_act", wrong)
    monkeypatch.setattr(interface, "gemm_dact", gemm_dact)
    assert fused._does_not_work.__wrapped__("cpu", "gelu").startswith("quack-kernels computes wrongly here")


def test_what_takes_them_is_told(capsys):
    tell_fused(12, True, Execution(), GPU)
    assert "train: fused kernels for 12 MLPs and the loss" in capsys.readouterr().out
    tell_fused(0, False, Execution(), GPU)
    with pytest.raises(BadInput, match="neither the MLPs nor the loss of this run have any"):
        tell_fused(0, False, Execution(fused_kernels=True), GPU)


def test_asking_for_them_where_they_cannot_be_says_why():
    train, model = TrainParams(precision="bf16"), decoder("swiglu")
    asked = Execution(fused_kernels=True)
    with pytest.raises(BadInput, match=r"execution.fused_kernels is true, but they are for GPUs; set it to auto"):
        wants_fused(model, train, asked, CPU, compiled=True)
    with pytest.raises(BadInput, match=r"they compute in bf16, not in train.precision fp32"):
        wants_fused(model, TrainParams(precision="fp32"), asked, GPU, compiled=True)
    assert not wants_fused(model, train, Execution(), CPU, compiled=True)
    assert not wants_fused(model, train, Execution(fused_kernels=False), GPU, compiled=True)
    told = [found.problem for found in infeasible(MODEL, train, Execution(device="cpu", fused_kernels=True), 8)]
    assert told == ["true, but execution.device is cpu; set it to auto"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_quack)])
@pytest.mark.parametrize("dtype", [float8.FORWARD, float8.BACKWARD])
def test_8_bits_lie_both_ways(device, dtype):
    """Written at once by the kernel; by torch on a CPU, which is its oracle."""
    x = torch.randn(200, 72, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, y_t, unscale = scaled_both(x.to(device), dtype)
    largest = torch.finfo(dtype).max
    scale = largest / x.abs().amax().float()
    expected = (x.float() * scale).clamp(-largest, largest).to(dtype)
    assert torch.equal(y.cpu().float(), expected.float())
    assert torch.equal(y_t.cpu().float(), expected.float().t())
    assert float(unscale) == pytest.approx(1 / float(scale))
