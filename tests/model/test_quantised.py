"""Packed matrices stand for what they should, and the kernels multiply by them."""

from __future__ import annotations

import pytest
import torch

import model.quantised as quantised
from model.config import ModelConfig
from model.decoder import Decoder
from model.quantised import PackedDecoder, PackedLinear, int4, int8, matrices, quantise

SMALL = ModelConfig(n_layers=2, hidden_size=64, n_heads=4, n_kv_heads=2)
VOCABULARY = 61


def drawn(config: ModelConfig) -> Decoder:
    decoder, generator = Decoder(config, VOCABULARY, 32), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            gains = float(parameter.ndim == 1 and not name.endswith("bias"))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + gains)
    return decoder.eval()


def packed(decoder: Decoder, bits: int) -> tuple[PackedDecoder, Decoder]:
    """The packed decoder, and a plain one with the weights that the codes stand for."""
    weights = decoder.state_dict()
    parts = quantise(weights, matrices(decoder), bits, 64)
    plain = {name: tensor for name, tensor in weights.items() if name not in parts}
    like = Decoder(decoder.config, VOCABULARY, 32).eval()
    like.load_state_dict({**plain, **{name: part.dequantised() for name, part in parts.items()}})
    return PackedDecoder(decoder.config, VOCABULARY, 32, parts, plain), like


def test_the_example_of_the_docstring() -> None:
    weight = torch.tensor([0.11, 0.4, -0.2, 0.25]).repeat(16, 8)
    part = int4(weight, 32)
    assert quantised.unpacked(part.codes)[0, :4].tolist() == [8, 15, 0, 11]
    assert part.dequantised()[0, :4].tolist() == pytest.approx([0.12, 0.4, -0.2, 0.24], abs=2e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_no_weight_moves_by_more_than_half_a_step(bits: int) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    part = int8(weight) if bits == 8 else int4(weight, 64)
    step = part.scale[:, None] if bits == 8 else part.scale.float().repeat_interleave(64, dim=1)
    assert ((part.dequantised() - weight).abs() <= step * (0.501 if bits == 8 else 0.6)).all()  # zeros are bf16


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(48, 64), (20, 24), (33, 96)], ids=str)
def test_few_rows_and_many_give_the_same_product_for_any_size(bits: int, shape: tuple[int, int]) -> None:
    """The kernel of int4 wants multiples of 16 outputs, and would read beyond the end of others: they stay int8."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(size, generator=generator) for size in (shape, shape[:1], (100, shape[1])))
    part = quantise({"w": weight}, ["w"], bits, 64)["w"]
    layer = PackedLinear(part, bias)
    few = torch.cat([layer(x[:1]), layer(x[1:4]), layer(x[4:16])])
    assert torch.allclose(few, layer(x)[:16], atol=0.02 * float(layer(x).abs().max()))
    assert torch.allclose(layer(x), x @ part.dequantised().t() + bias, atol=1e-5)


def test_inputs_as_int8_give_the_same_bits_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator) for size in ((48, 64), (100, 64)))
    layer = PackedLinear(int8(weight), dynamic=True)
    assert torch.equal(torch.cat([layer(row[None]) for row in x]), layer(x))
    rounded = quantised.in_one_digit(x)
    assert float((rounded - x).abs().amax()) <= 0.51 * float((x.amax(1) - x.amin(1)).max()) / 127
    assert torch.allclose(layer(x), rounded @ layer.weight.t(), atol=1e-4)


HYBRID = {"layer_pattern": "swa,mla", "window": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
          "v_head_dim": 16}  # fmt: skip
KINDS = {
    "plain": {},
    "hybrid": HYBRID,
    "experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 32},
    "untied, biases": {"tie_embeddings": False, "bias": True, "fused_qkv": True, "logit_softcap": 4.0},
    "learned positions": {"positions": "learned", "norm": "layernorm", "mlp": "gelu"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_decoder_computes_what_its_weights_stand_for(
    kind: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = drawn(ModelConfig(**{**vars(SMALL), "preset": "", **KINDS[kind]}))
    small, like = packed(decoder, bits)
    inputs = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        caches = small.new_caches(2, 20)
        steps = [small.extend(inputs[:, t : t + 1], torch.full((2, 1), t), caches) for t in range(20)]
        monkeypatch.setattr(quantised, "FEW_ROWS", {8: 0, 4: 0})
        exact = small(inputs)
        assert torch.allclose(exact, like(inputs), atol=1e-5)
    near = 0.03 * float(exact.abs().max())  # that of int4 rounds its inputs to bf16; a router near a tie may turn
    beyond = (torch.cat(steps, dim=1) - exact).abs().amax(dim=-1) > near
    assert beyond.float().mean() <= (0.1 if kind == "experts" else 0)


def test_int4_takes_less_than_a_third_of_bf16() -> None:
    decoder = drawn(SMALL)
    weights, names = decoder.state_dict(), matrices(decoder)
    parts = quantise(weights, names, 4, 64)
    assert parts["embedding.weight"].bits == 8
    linear = [name for name in names if name != "embedding.weight"]
    assert sum(parts[name].n_bytes for name in linear) <= 0.30 * sum(2 * weights[name].numel() for name in linear)
