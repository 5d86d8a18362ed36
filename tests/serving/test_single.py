"""One token of one sequence in few operations: the logits are those of the decoder itself, for every architecture."""

import pytest
import torch

from model.quantised import PackedDecoder, matrices, quantise
from serving.reader import Reader
from tests.model.test_decoder import KINDS, decoder, tokens

CAPACITY = 40
VARIANTS = {
    **KINDS,
    "post norm": {"pre_norm": False, "post_norm": True},
    "whole-vector norms": {"qk_norm": True, "qk_norm_scope": "full"},
    "norms without gain": {"qk_norm": True, "qk_norm_gain": False},
    "learned": {"positions": "learned", "bias": True, "mlp": "gelu"},
    "sinusoids": {"positions": "sinusoidal", "norm": "layernorm"},
    "fused": {"fused_qkv": True, "bias": True},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 16},
    "subclass of attention": {"layer_pattern": "model.mine.Gated,full"},
    "subclass of a norm": {"norm": "model.mine.Centred", "post_norm": True},
    "subclass of an MLP": {"mlp": "model.mine.Clipped"},
    "norm of one's own": {"norm": "model.mine.WholeNorm", "post_norm": True},
    "MLP of one's own": {"mlp": "model.mine.WholeMLP"},
    "cache of one's own": {"layer_pattern": "model.mine.Remembering"},
}


def equal_to_the_decoder(model, within=1e-4):
    row = tokens(1, CAPACITY)[0].tolist()
    reader = Reader(model, 2, CAPACITY)
    reader.fill(0, row[:7], 0)
    with torch.no_grad():
        right_TV = model(torch.tensor([row]))[0]
    for place in range(7, CAPACITY):
        torch.testing.assert_close(reader.step([row[place]], [place])[0], right_TV[place], atol=within, rtol=within)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_decoder(variant):
    model = decoder(**VARIANTS[variant])
    assert Reader(model, 1, CAPACITY).single is not None
    equal_to_the_decoder(model)


@pytest.mark.parametrize("settings", [{}, {"mlp": "model.mine.Doubling"}])
def test_packed_matrices_are_called_as_they_are(settings):
    plain = decoder(**settings)
    weights = plain.state_dict()
    packed = quantise(weights, matrices(plain), 8, 64)
    rest = {name: tensor for name, tensor in weights.items() if name not in packed}
    # inputs are rounded to 14 bits: where two ways differ in the last bit, one may fall on the next step
    small = PackedDecoder(plain.config, plain.vocab_size, CAPACITY, packed, rest)
    equal_to_the_decoder(small, within=2e-3)


def test_a_subclass_of_a_matrix_is_not_packed():
    plain = decoder(mlp="model.mine.Doubling")
    assert not [name for name in matrices(plain) if name.endswith("mlp.up.weight")]
    assert [name for name in matrices(plain) if name.endswith("mlp.down.weight")]
