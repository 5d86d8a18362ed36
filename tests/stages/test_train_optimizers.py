"""Lion, and states in 8 bits that forget as those in 32 do."""

import dataclasses

import pytest
import torch
from torch import nn

from model.decoder import Decoder
from stages.errors import BadInput
from stages.train.lion import Lion
from stages.train.low_bit import BLOCK, FLOAT8, LowBit, decode, dynamic_codes, encode_dynamic8, encode_float8
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams
from tests.stages.test_train import MODEL, TRAIN, losses, run_in

LOW_BIT = {"adamw_8bit": 2.03125, "adamw_fp8": 2.03125, "lion_fp8": 1.015625}
SIZE = 4096


def parameter_of(values: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values.clone())
    parameter.grad = torch.zeros_like(parameter)
    return parameter


def test_three_steps_of_lion_by_hand():
    parameter = parameter_of(torch.tensor([1.0, 1.0]))
    lion = Lion([{"params": [parameter], "weight_decay": 0.5}], lr=0.1, betas=(0.9, 0.99))
    expected, momentum = [1.0, 1.0], [0.0, 0.0]
    for gradient in ([-0.3, 0.2], [0.1, -5.0], [0.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        lion.step()
        for i, g in enumerate(gradient):
            direction = 0.9 * momentum[i] + 0.1 * g
            sign = (direction > 0) - (direction < 0)
            expected[i] = expected[i] * (1 - 0.1 * 0.5) - 0.1 * sign
            momentum[i] = 0.99 * momentum[i] + 0.01 * g
    assert parameter.tolist() == pytest.approx(expected, abs=1e-6)
    assert lion.state[parameter]["momentum"].tolist() == pytest.approx(momentum, abs=1e-7)


def test_the_codes_are_256_and_ascend_from_minus_one_to_one():
    codes = dynamic_codes(torch.device("cpu"))
    assert len(codes) == 256 and codes[0] == -1 and codes[-1] == 1 and 0.0 in codes.tolist()
    assert (codes.diff() > 0).all()


@pytest.mark.parametrize("encode", [encode_dynamic8, encode_float8])
def test_rounding_keeps_the_mean_and_moves_by_one_code_at_most(encode):
    values = torch.randn(64, BLOCK, generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    mean = sum(decode(*encode(values, torch.rand(values.shape, generator=draws))) for _ in range(400)) / 400
    largest = values.abs().amax(dim=1, keepdim=True)
    assert float((mean - values).abs().div(largest).max()) < 0.01
    assert float((mean - values).mean().abs()) < 1e-4
    once = decode(*encode(values, torch.full_like(values, 0.5)))
    assert float(((once - values).abs() / values.abs().clamp(min=0.01)).max()) < 0.15


@pytest.mark.parametrize("coding", ["dynamic8", "float8"])
def test_a_state_without_gradients_falls_as_in_32_bits(coding):
    """0.999 a step for 2,000 steps is 0.135; beside one number that stays large, so that the scale does not fall."""
    torch.set_num_threads(1)  # thousands of small operations
    parameter = parameter_of(torch.zeros(SIZE))
    optimizer = LowBit([{"params": [parameter]}], "adamw", coding, False, lr=0.0, betas=(0.999, 0.999))
    state = optimizer.new_state(parameter)
    ones = torch.ones(SIZE // BLOCK, BLOCK)
    for name in ("mean", "root"):
        codes, scales = (encode_dynamic8 if coding == "dynamic8" else encode_float8)(ones, ones / 2)
        state[f"{name}_codes"].copy_(codes)
        state[f"{name}_scales"].copy_(scales)
    parameter.grad[::BLOCK] = 1.0  # the first of each block stays 1
    for _ in range(2000):
        optimizer.step()
    rest = torch.arange(SIZE) % BLOCK > 0
    mean, root = (decode(state[f"{name}_codes"], state[f"{name}_scales"]).flatten()[rest] for name in ("mean", "root"))
    assert float(mean.mean()) == pytest.approx(0.999**2000, rel=0.05)
    assert float(root.square().mean()) == pytest.approx(0.999**2000, rel=0.1)


@pytest.mark.parametrize("name", LOW_BIT)
def test_bytes_of_states_are_measured(name):
    model = Decoder(dataclasses.replace(MODEL, hidden_size=64), 512)
    model.initialise(torch.Generator().manual_seed(0))
    optimizers = Optimizers(model, TrainParams(optimizer=name))
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizers.step(1.0, torch.tensor(True))
    coded = [p for p in model.parameters() if p.numel() >= SIZE]
    small = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in coded)
    states = sum(t.nbytes for n, t in optimizers.tensors().items() if "codes" in n or "scales" in n)
    assert states == LOW_BIT[name] * sum(p.numel() for p in coded)
    of_small = small * (4 if name == "lion_fp8" else 8) + 4 * len(list(model.parameters()))
    assert optimizers.state_bytes() == states + of_small


@pytest.mark.parametrize("name", ["lion", *LOW_BIT])
def test_a_step_that_is_not_finite_moves_nothing(name):
    model = Decoder(dataclasses.replace(MODEL, hidden_size=64), 512)
    model.initialise(torch.Generator().manual_seed(0))
    optimizers = Optimizers(model, TrainParams(optimizer=name))
    for finite in (True, False):
        model(torch.arange(4)[None]).sum().backward()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        held = {n: t.clone() for n, t in optimizers.tensors().items()}
        if not finite:
            for parameter in model.parameters():
                parameter.grad.fill_(float("nan"))
        optimizers.step(1.0, torch.tensor(finite))
        optimizers.zero_grad()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(t.float(), held[n].float()) for n, t in optimizers.tensors().items())


@pytest.mark.parametrize("name", LOW_BIT)
def test_losses_fall_as_with_states_in_32_bits(name, packed):
    params = TRAIN.model_copy(update={"optimizer": name, "max_steps": 8, "lion_lr": 0.003, "lr": 0.01})
    found = losses(run_in(packed, params))
    plain = params.model_copy(update={"optimizer": "lion" if name == "lion_fp8" else "adamw"})
    reference = losses(run_in(packed, plain))
    assert found[-1] < found[0] - 0.05
    assert found[-1] == pytest.approx(reference[-1], abs=0.05)


def test_float8_states_are_of_the_dtype_that_safetensors_knows():
    codes, scales = encode_float8(torch.ones(1, BLOCK), torch.zeros(1, BLOCK))
    assert codes.dtype == FLOAT8 and scales.shape == (1, 1)


def test_no_layer_is_wide_enough_for_8_bits():
    from stages.train.float8 import convert_to_float8

    with pytest.raises(BadInput, match="no linear layer of this model is at least 1024 wide"):
        convert_to_float8(Decoder(MODEL, 512), "tensorwise")
