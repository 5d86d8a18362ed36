"""The identities every decoder must satisfy, of every kind. That it equals code that is not ours, transformers'
Llama, Qwen3, OLMo 2, DeepSeek and others, is tests/stages/test_huggingface.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model.config import PRESETS, ModelConfig, padded_vocabulary
from model.decoder import Decoder
from model.size import n_parameters

VOCABULARY = 97
PLACEMENTS = [(True, False), (False, True), (True, True)]
QK_NORMS = [(False, "head"), (True, "head"), (True, "full")]


# One of every idea; each test that takes `kind` holds for all of them.
KINDS = {
    "plain": {},
    "windows": {"layer_pattern": "swa,full", "window": 3, "sink_tokens": 1},
    "latent": {"layer_pattern": "mla", "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
               "v_head_dim": 5},
    "hybrid": {"layer_pattern": "swa,mla", "window": 4, "sink_tokens": 2, "q_lora_rank": 8, "kv_lora_rank": 10,
               "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6},
    "experts": {"n_experts": 4, "n_shared_experts": 1, "dense_layers": 1, "expert_size": 20},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False,
             "n_kv_heads": 4},
    "dyt": {"norm": "dyt", "mlp": "relu2", "positions": "none"},
    "sinusoidal": {"positions": "sinusoidal", "mlp": "geglu", "fused_qkv": True, "logit_softcap": 3.0},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full", "rope_scaling": "yarn", "rope_factor": 4.0,
              "rope_original_length": 8},
}  # fmt: skip
LENGTH = 40
kinds = pytest.mark.parametrize("kind", KINDS)


def decoder(seed: int = 0, vocab_size: int = VOCABULARY, **changes: object) -> Decoder:
    """A small decoder with weights large enough that every part of it matters."""
    values = {"n_layers": 2, "hidden_size": 24, "n_heads": 4, "n_kv_heads": 2, **changes}
    model = Decoder(ModelConfig(**values), vocab_size, LENGTH)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim < 2 else 0.0, 0.3, generator=generator)
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments and positions of one row with documents of these lengths."""
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return segments, torch.cat([torch.arange(n) for n in lengths])[None]


@kinds
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_a_document_in_a_packed_row_is_the_document_alone(kind, lengths):
    model = decoder(**KINDS[kind])
    row = tokens(1, sum(lengths))
    segments, positions = packed(lengths)
    together = model(row, segments, positions)
    for start, length in zip(itertools.accumulate([0, *lengths]), lengths, strict=False):
        alone = model(row[:, start : start + length])
        torch.testing.assert_close(together[:, start : start + length], alone, atol=2e-5, rtol=2e-5)


@kinds
def test_what_stands_in_another_document_changes_logits_by_exactly_zero(kind):
    if kind == "experts":
        pytest.skip("a matrix product over other tokens rounds otherwise: test_experts.py")
    model = decoder(**KINDS[kind])
    segments, positions = packed([5, 7])
    row = tokens(1, 12)
    changed = row.clone()
    changed[0, :5] = (changed[0, :5] + 31) % VOCABULARY
    assert torch.equal(model(row, segments, positions)[:, 5:], model(changed, segments, positions)[:, 5:])


def test_logits_depend_on_distances_between_positions_not_on_the_positions():
    model = decoder()
    row = tokens(2, 10)
    positions = torch.arange(10)[None].expand(2, -1)
    torch.testing.assert_close(model(row, None, positions), model(row, None, positions + 1000), atol=2e-3, rtol=1e-3)
    assert not torch.allclose(model(row, None, positions), model(row, None, positions * 2), atol=1e-2)


@pytest.mark.parametrize("scope", ["head", "full"])
def test_with_qk_norm_the_size_of_the_query_weights_does_not_matter(scope):
    model = decoder(qk_norm=True, qk_norm_scope=scope)
    row = tokens(1, 12)
    before = model(row)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.query.weight.mul_(10)
    torch.testing.assert_close(model(row), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("silent", ["attention_post_norm", "mlp_post_norm"])
def test_in_the_hybrid_placement_every_branch_has_rms_one(silent):
    """What a block adds to x is one branch where the gain of the other is zero."""
    model = decoder(post_norm=True)
    block = model.blocks[0]
    for norm in (block.attention_post_norm, block.mlp_post_norm):
        torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(getattr(block, silent).weight)
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(2)) * 50
    added = block(x, model.context(tokens(1, 9)))[0] - x
    torch.testing.assert_close(added.pow(2).mean(-1).sqrt(), torch.ones(1, 9), atol=1e-3, rtol=0)


@settings(max_examples=10, deadline=None)
@given(kv=st.sampled_from([1, 2, 4]), qk=st.sampled_from(QK_NORMS))
def test_probabilities_are_those_that_the_output_was_made_with(kv, qk):
    model = decoder(n_kv_heads=kv, qk_norm=qk[0], qk_norm_scope=qk[1])
    attention = model.blocks[0].attention
    segments, positions = packed([3, 6])
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(1))
    context = model.context(tokens(1, 9), segments, positions)
    probabilities = attention.probabilities(x, context)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 4, 9))
    values = attention.value(x).view(1, 9, kv, 6).transpose(1, 2).repeat_interleave(4 // kv, dim=1)
    by_hand = attention.output((probabilities @ values).transpose(1, 2).reshape(1, 9, -1))
    torch.testing.assert_close(by_hand, attention(x, context), atol=1e-5, rtol=1e-5)


@kinds
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "head_dim": 8}, {"post_norm": True, "qk_norm_gain": False}]
)
def test_the_parameter_count_follows_its_formula(kind, changes):
    config = ModelConfig(**{"n_layers": 3, "hidden_size": 24, "n_heads": 4, "n_kv_heads": 2, **KINDS[kind], **changes})
    model = Decoder(config, 300, LENGTH)
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters(config, 300, LENGTH)


def test_presets_are_as_large_as_they_say():
    """With the GPT-2 kinds at its vocabulary and context, the sizes are those of GPT-2 (OpenAI, 2019)."""
    gpt2 = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False}
    millions = {name: round(n_parameters(ModelConfig(preset=name, **gpt2), 50257, 1024) / 1e6) for name in PRESETS}
    assert {name: millions[name] for name in ("gpt2-124m", "d24", "d36", "d48")} == {
        "gpt2-124m": 124, "d24": 355, "d36": 774, "d48": 1558,
    }  # fmt: skip
    with torch.device("meta"):
        for name in PRESETS:
            model = Decoder(ModelConfig(preset=name), 32000)
            counted = sum(parameter.numel() for parameter in model.parameters())
            assert counted == n_parameters(model.config, 32000), name


def test_any_field_overrides_its_preset():
    config = ModelConfig(preset="base", n_layers=2, n_kv_heads=4)
    assert (config.n_layers, config.hidden_size, config.n_heads, config.n_kv_heads) == (2, 1536, 16, 4)


@pytest.mark.parametrize("hidden_size", [192, 768, 1536])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_does_not_grow_with_the_width(hidden_size, tied):
    model = Decoder(ModelConfig(preset="small", n_layers=2, hidden_size=hidden_size, tie_embeddings=tied), 4096)
    model.initialise(torch.Generator().manual_seed(0))
    row = torch.randint(0, 4096, (8, 65), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(4096), abs=0.15)


@kinds
def test_the_first_loss_of_every_kind_is_that_of_guessing(kind):
    model = Decoder(ModelConfig(**{**KINDS[kind], "logit_softcap": 0.0}), 1000, 64)
    model.initialise(torch.Generator().manual_seed(0))
    row = torch.randint(0, 1000, (4, 65), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.15)


def test_logits_are_capped_softly():
    free, capped = decoder(), decoder(logit_softcap=2.0)
    logits = free(tokens(1, 9))
    torch.testing.assert_close(capped(tokens(1, 9)), 2 * torch.tanh(logits / 2))


def test_a_fused_matrix_is_the_three_side_by_side():
    apart, fused = decoder(), decoder(fused_qkv=True)
    weights = apart.state_dict()
    for i in range(2):
        three = [weights.pop(f"blocks.{i}.attention.{name}.weight") for name in ("query", "key", "value")]
        weights[f"blocks.{i}.attention.query_key_value.weight"] = torch.cat(three)
    fused.load_state_dict(weights)
    torch.testing.assert_close(fused(tokens(1, 9)), apart(tokens(1, 9)))


def test_dropout_acts_while_training_alone():
    model = decoder(dropout=0.5)
    assert torch.equal(model(tokens(1, 9)), model(tokens(1, 9)))
    model.train()
    assert not torch.equal(model(tokens(1, 9)), model(tokens(1, 9)))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_guessing(placement, tied):
    config = ModelConfig(pre_norm=placement[0], post_norm=placement[1], tie_embeddings=tied)
    model = Decoder(config, 1000)
    model.initialise(torch.Generator().manual_seed(0))
    row = torch.randint(0, 1000, (4, 65), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.15)


def test_initial_weights_are_those_of_the_seed_whatever_was_drawn_before():
    first, second = (Decoder(ModelConfig(), 300) for _ in range(2))
    first.initialise(torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    second.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_rows_of_the_embedding_beyond_the_vocabulary_never_appear():
    model = decoder(vocab_size=130)
    assert model.embedding.weight.shape[0] == padded_vocabulary(130) == 256
    assert model(tokens(1, 4)).shape == (1, 4, 130)


def test_a_pattern_is_read_with_spaces_anywhere_between_its_parts():
    for pattern in ("swa*2,mla", " swa *2 , mla", "swa* 2+mla *1"):
        assert ModelConfig(n_layers=4, layer_pattern=pattern).kinds == ("swa", "swa", "mla", "swa")
    with pytest.raises(ValueError, match="'s wa\\*2' is no name with a count"):
        ModelConfig(layer_pattern="s wa*2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads 3 does not divide n_heads 4"),
        ({"hidden_size": 30}, "not a multiple of n_heads"),
        ({"hidden_size": 12}, "head_dim comes to 3; rotary embedding needs an even one, set head_dim to 4"),
        ({"n_layers": 10**9}, "n_layers is 1000000000; it must be at most 10000"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776; it must be at most"),
        ({"layer_pattern": "full*99999999999999999999"}, "names more than 10000 layers"),
        ({"layer_pattern": "full*9999+swa*2"}, "names more than 10000 layers"),
        ({"experts_per_token": -7}, "experts_per_token is -7; it must be at least 1"),
        ({"rope_theta": 0.5, "positions": "none"}, "rope_theta is 0.5; it must be more than 1"),
        ({"q_lora_rank": -1}, "q_lora_rank is -1; it must be at least 0"),
        ({"head_dim": -2}, "head_dim is -2; it must be positive, or 0"),
        ({"pre_norm": False}, "both false"),
        (
            {"preset": "", "n_layers": 2, "hidden_size": 8},
            "n_heads is 0; it must be at least 1, since there is no preset",
        ),
        ({"preset": "huge"}, "preset 'huge' is unknown; there are tiny, gpt2-124m"),
        ({"layer_pattern": "swa*0"}, "'swa\\*0' is no name with a count"),
        ({"rope_factor": 2.0}, "rope_scaling is none"),
        ({"rope_scaling": "yarn", "rope_factor": 2.0}, "needs rope_original_length"),
        ({"n_experts": 2, "experts_per_token": 3}, "not within 1 and n_experts 2"),
        ({"n_experts": 2, "mlp": "gelu"}, "experts are gated"),
        ({"dense_layers": 1}, "dense_layers is 1 and needs experts; set n_experts"),
        ({"expert_size": 7}, "expert_size is 7 and needs experts"),
        ({"n_experts": 4, "experts_per_token": 1}, "the router would learn nothing"),
        ({"layer_pattern": "swa*3+mla"}, "names 4 layers, the model has 3; set n_layers to 4 or more"),
        ({"rope_original_length": 7}, "yarn and llama3 alone"),
        ({"logit_softcap": math.inf}, "logit_softcap is inf"),
        ({"rope_theta": 1.0}, "must be more than 1"),
        ({"post_norm": True, "residual_init": "zero"}, "blows its gradient up"),
        ({"dropout": 1.0}, "less than 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
)
def test_combinations_that_are_no_architecture_are_refused_with_the_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        ModelConfig(**changes)
