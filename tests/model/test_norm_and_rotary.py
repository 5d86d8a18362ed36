"""Norms equal torch's, DyT its formula; rotary scalings do what their papers say."""

import math

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.norm import DyT, LayerNorm, RMSNorm
from model.rotary import frequencies
from tests.model.small import drawn


@pytest.mark.parametrize(("ours", "theirs"), [(RMSNorm, nn.RMSNorm), (LayerNorm, nn.LayerNorm)])
def test_as_torch_has_it(ours, theirs):
    mine, reference = drawn(ours(10, 1e-5)), theirs(10, eps=1e-5)
    reference.load_state_dict(mine.state_dict())
    x = torch.randn(4, 10) * 7 + 3
    torch.testing.assert_close(mine(x), reference(x))


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm, DyT])
def test_statistics_are_fp32_whatever_comes_in(kind):
    norm, x = drawn(kind(64, 1e-6)), torch.randn(4, 64) * 100
    half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, norm(x.bfloat16().float()).bfloat16())


def test_dyt_and_its_gradients_are_those_of_its_formula():
    norm = drawn(DyT(6, 0.0))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours = [x, norm.alpha, norm.weight, norm.bias]
    copies = [tensor.detach().double().requires_grad_() for tensor in ours]
    by_hand = torch.tanh(copies[1] * copies[0]) * copies[2] + copies[3]
    torch.testing.assert_close(norm(x).double(), by_hand, atol=1e-6, rtol=1e-6)
    direction = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(norm(x), ours, direction)
    for ours_gradient, gradient in zip(found, torch.autograd.grad(by_hand, copies, direction.double()), strict=True):
        torch.testing.assert_close(ours_gradient.double(), gradient, atol=1e-5, rtol=1e-5)
    assert DyT(6, 0.0).alpha.item() == 0.5


def test_the_example_of_the_module():
    x = torch.tensor([[3.0, 4.0]])
    assert RMSNorm(2, 1e-6)(x)[0].tolist() == pytest.approx([0.849, 1.131], abs=1e-3)
    assert LayerNorm(2, 1e-6)(x)[0].tolist() == pytest.approx([-1, 1], abs=1e-3)
    assert DyT(2, 0)(x)[0].tolist() == pytest.approx([0.905, 0.964], abs=1e-3)


def scaled(**changes) -> tuple[torch.Tensor, float]:
    return frequencies(ModelConfig(**changes), 64)


def test_linear_scaling_reads_a_longer_text_as_one_of_the_old_length():
    plain, _ = scaled()
    torch.testing.assert_close(scaled(rope_scaling="linear", rope_factor=4.0)[0] * 4, plain)


def test_ntk_scaling_slows_the_slowest_pair_by_the_factor_and_keeps_the_fastest():
    plain, _ = scaled()
    ntk, _ = scaled(rope_scaling="ntk", rope_factor=4.0)
    assert ntk[0] == plain[0] and float(plain[-1] / ntk[-1]) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_ramps_keep_fast_pairs_and_slow_slow_ones(kind):
    plain, _ = scaled()
    slowed, scale = scaled(rope_scaling=kind, rope_factor=4.0, rope_original_length=512)
    ratio = plain / slowed
    assert ratio[0] == 1 and float(ratio[-1]) == pytest.approx(4.0, rel=1e-5)
    assert (ratio.diff() >= -1e-5).all()
    assert scale == pytest.approx(0.1 * math.log(4) + 1 if kind == "yarn" else 1.0)
