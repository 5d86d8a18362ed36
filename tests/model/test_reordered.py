"""Matrices in blocks: the same numbers, for all kinds of decoders, and a row alone is the row among others."""

import pytest
import torch
from torch import nn

from model.decoder import Decoder
from model.reordered import AVAILABLE, Reordered, ReorderedDecoder
from tests.model.test_decoder import decoder, tokens
from tests.serving.test_single import CAPACITY, VARIANTS

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no oneDNN in this build of torch")


def reordered(model: Decoder) -> ReorderedDecoder:
    return ReorderedDecoder(
        model.config, model.vocab_size, CAPACITY, {k: v.clone() for k, v in model.state_dict().items()}
    )


@pytest.mark.parametrize("variant", [name for name, settings in VARIANTS.items() if "model.mine" not in str(settings)])
def test_logits_are_those_of_the_decoder(variant: str) -> None:
    model = decoder(**VARIANTS[variant])
    inputs = tokens(3, 20)
    with torch.inference_mode():
        torch.testing.assert_close(reordered(model)(inputs), model(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"tie_embeddings": False}, {"logit_softcap": 5.0}, {"bias": True, "mlp": "gelu"}])
def test_heads_caps_and_biases_too(settings: dict) -> None:
    model = decoder(**settings)
    inputs = tokens(2, 9)
    with torch.inference_mode():
        torch.testing.assert_close(reordered(model)(inputs), model(inputs), atol=1e-5, rtol=1e-5)


def test_an_untied_head_is_the_one_that_multiplies() -> None:
    model = decoder(tie_embeddings=False)
    hidden = torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = reordered(model).head_product(hidden)
        torch.testing.assert_close(found, model.head_product(hidden), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, hidden @ model.embedding.weight.t(), atol=1e-2)


def test_the_plain_matrices_are_not_kept() -> None:
    model = decoder(tie_embeddings=False)
    weights = dict(model.state_dict())
    held = ReorderedDecoder(model.config, model.vocab_size, CAPACITY, weights)
    assert not weights
    assert not [name for name, part in held.named_modules() if type(part) is nn.Linear]
    assert [name for name, tensor in held.named_parameters() if tensor.ndim == 2] == ["embedding.weight"]


@pytest.mark.parametrize("rows", [1, 2, 8, 65, 300])
def test_any_number_of_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*size, generator=generator) for size in ((37, 20), (37,), (rows, 3, 20)))
    found = Reordered(weight, bias)(x)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias), atol=1e-5, rtol=1e-5)
