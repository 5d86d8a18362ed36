"""Caches: reading in pieces gives the logits of reading at once, in every kind, for sequences of unequal length."""

import pytest
import torch

from model.cache import Slots
from model.config import ModelConfig
from model.context import EMPTY, Reach
from model.decoder import Decoder
from model.sampling import CachedReader
from model.size import cache_numbers_per_token, summary
from tests.model.small import drawn
from tests.model.test_decoder import KINDS, decoder, tokens

LENGTH = 31


def read_in_chunks(model: Decoder, row: torch.Tensor, chunk: int) -> torch.Tensor:
    caches = model.new_caches(row.shape[0], row.shape[1])
    parts = []
    for start in range(0, row.shape[1], chunk):
        part = row[:, start : start + chunk]
        positions = torch.arange(start, start + part.shape[1]).expand_as(part)
        parts.append(model.extend(part, positions, caches))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_in_chunks_as_at_once(kind, chunk):
    model, row = decoder(**KINDS[kind]), tokens(2, LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(read_in_chunks(model, row, chunk), model(row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_unequal_length_are_read_as_if_alone(kind):
    model = decoder(**KINDS[kind])
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11, 7)]
    reader = CachedReader(model, 3, LENGTH)
    with torch.no_grad():
        for steps in range(9):
            live = [0, 1, 2] if steps < 5 else [0, 2]
            logits = reader.next_logits(rows, live)
            for i, logits_V in zip(live, logits, strict=True):
                torch.testing.assert_close(logits_V, model(torch.tensor([rows[i]]))[0, -1], atol=1e-4, rtol=1e-4)
                rows[i].append((rows[i][-1] * 5 + 1) % 90)


def test_a_ring_holds_the_sinks_and_the_window():
    """The example of the module: window 3, one sink, six tokens."""
    slots = Slots.of(20, Reach(window=3, sinks=1))
    assert slots.held(torch.tensor([6, 2, 0])).tolist() == [[0, 4, 5, 3], [0, 1, EMPTY, EMPTY], [EMPTY] * 4]
    assert slots.slot(torch.arange(6)).tolist() == [0, 1, 2, 3, 1, 2]


def test_a_window_remembers_no_more_however_long_the_text():
    config = ModelConfig(n_layers=1, layer_pattern="swa", window=8, sink_tokens=2)
    model = drawn(Decoder(config, 50))
    short, long = (model.new_caches(1, capacity)[0].n_bytes for capacity in (100, 100_000))
    assert short == long == 10 * cache_numbers_per_token(config, "swa") * 4


def test_a_latent_cache_is_much_smaller_than_keys_and_values():
    config = ModelConfig(preset="base", layer_pattern="mla")
    assert cache_numbers_per_token(config, "mla") == 256 + 64
    assert cache_numbers_per_token(config, "full") == 2 * 16 * 96
    model = drawn(Decoder(ModelConfig(n_layers=1, layer_pattern="mla", kv_lora_rank=32, qk_rope_head_dim=8), 50))
    assert model.new_caches(1, 10)[0].n_bytes == 10 * (32 + 8) * 4


def test_a_full_cache_is_refused():
    model = decoder()
    with pytest.raises(ValueError, match="position 5 in a cache for 5 tokens"):
        model.extend(tokens(1, 6), torch.arange(6)[None], model.new_caches(1, 5))


def test_the_line_of_costs_names_every_kind_beside_plain_attention():
    config = ModelConfig(preset="hybrid")
    assert config.kinds == ("swa", "swa", "mla") * 4
    assert summary(config, 1234) == (
        "1,234 parameters; a token in the cache (bf16; twice in fp32, as on CPUs): 3,072 bytes a swa layer (of the "
        "last 256 and first 4 alone), 640 bytes an mla layer, 3,072 with MHA"
    )
    assert summary(ModelConfig(layer_pattern="model.mine.Attention"), 5) == "5 parameters"


def test_the_pattern_of_a_preset_can_be_set_besides():
    assert ModelConfig(preset="hybrid", layer_pattern="full").kinds == ("full",) * 12
    assert ModelConfig(preset="tiny").layer_pattern == "full"
