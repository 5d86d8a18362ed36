"""Every decoder that is exported equals the decoder of transformers, in logits, with copied weights."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.config import ModelConfig
from model.decoder import Decoder
from stages import huggingface
from stages.code.combinations import exportable
from stages.errors import BadInput
from stages.huggingface import ARCHITECTURES, from_huggingface, refuse_unsupported, to_huggingface

TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
VOCAB_SIZE, CONTEXT_LENGTH = 151, 48

TWINS = {
    "llama": {"qk_norm": False},
    "mistral": {"qk_norm": False, "hidden_size": 50, "n_heads": 3, "n_kv_heads": 1, "head_dim": 14},
    "qwen3": {},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full"},
    "exaone4": {"pre_norm": False, "post_norm": True},
    "gemma2": {"post_norm": True, "qk_norm": False},
    "gemma3_text": {"post_norm": True},
}
SHAPES = [
    {"hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "tie_embeddings": True},
    {"hidden_size": 40, "n_heads": 4, "n_kv_heads": 1, "head_dim": 22, "tie_embeddings": False},
    {"hidden_size": 48, "n_heads": 3, "n_kv_heads": 3, "intermediate_size": 77, "norm_eps": 1e-5, "rope_theta": 500.0},
]


def drawn(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder with weights, gains included, that no error can hide behind."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            scale = 0.1 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1))
    return decoder


def twin_of(decoder: Decoder, attention: str) -> torch.nn.Module:
    settings, weights = to_huggingface(decoder.state_dict(), decoder.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    settings = dict(settings)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    twin = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    absent, unknown = twin.load_state_dict(weights, strict=False)
    assert not unknown and absent in ([], ["lm_head.weight"])
    twin.tie_weights()
    return twin


@pytest.mark.parametrize(("model_type", "shape"), itertools.product(TWINS, range(len(SHAPES))))
def test_logits_equal_those_of_transformers(model_type: str, shape: int) -> None:
    config = ModelConfig(n_layers=2, **{**SHAPES[shape], **TWINS[model_type]})
    decoder = drawn(config, seed=shape)
    attention = "eager" if shape == 0 or model_type == "gemma2" else "sdpa"
    twin = twin_of(decoder, attention)
    assert twin.config.model_type == model_type
    inputs = torch.randint(VOCAB_SIZE, (2, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        ours, theirs = decoder(inputs), twin(inputs).logits
    assert ours.shape == theirs.shape == (2, CONTEXT_LENGTH, VOCAB_SIZE)
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("model_type", TWINS)
def test_there_and_back_gives_the_same_decoder(model_type: str) -> None:
    config = ModelConfig(n_layers=2, **{**SHAPES[1], **TWINS[model_type]})
    decoder = drawn(config)
    settings, weights = to_huggingface(decoder.state_dict(), config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    again, our_weights = from_huggingface(settings, weights)
    derived = {"head_dim": config.width_of_head, "intermediate_size": config.width_of_mlp}
    scope = {} if config.qk_norm else {"qk_norm_scope": "head"}
    assert again == dataclasses.replace(config, **derived, **scope)
    returned = Decoder(again, VOCAB_SIZE).eval()
    returned.load_state_dict(our_weights)
    inputs = torch.arange(CONTEXT_LENGTH)[None]
    with torch.no_grad():
        assert torch.allclose(returned(inputs), decoder(inputs), atol=1e-5)


def test_a_config_that_transformers_wrote_itself_is_read_back(tmp_path: Path) -> None:
    decoder = drawn(ModelConfig(n_layers=1, **SHAPES[0]))
    twin_of(decoder, "eager").config.save_pretrained(tmp_path)
    settings = AutoConfig.from_pretrained(tmp_path).to_dict()
    _, weights = to_huggingface(decoder.state_dict(), decoder.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    config, _ = from_huggingface(settings, weights)
    assert config.n_layers == 1 and config.rope_theta == 10000.0


def test_padding_rows_of_the_vocabulary_stay_at_home() -> None:
    decoder = drawn(ModelConfig(n_layers=1, tie_embeddings=False, **{**SHAPES[2], "rope_theta": 1e4}))
    assert decoder.embedding.weight.shape[0] == 256
    _, theirs = to_huggingface(decoder.state_dict(), decoder.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    assert theirs["model.embed_tokens.weight"].shape == theirs["lm_head.weight"].shape == (VOCAB_SIZE, 48)


def test_every_combination_of_norms_has_a_twin_or_a_reason() -> None:
    refused = []
    for pre, post, scope in itertools.product((True, False), (True, False), ("", "head", "full")):
        if not (pre or post):
            continue
        config = ModelConfig(
            pre_norm=pre, post_norm=post, qk_norm=bool(scope), qk_norm_scope="full" if scope == "full" else "head"
        )
        reason = refuse_unsupported(config)
        if reason:
            refused.append((pre, post, scope))
            assert "\n" not in reason and "set qk_norm" in reason
            with pytest.raises(BadInput, match="could not be exported"):
                huggingface.architecture_of(config)
        else:
            assert huggingface.architecture_of(config).model_type in ARCHITECTURES
    assert refused == [(True, True, "full"), (True, False, "full"), (False, True, "")]


def test_the_default_exports_as_qwen3_and_its_ablation_as_gemma3() -> None:
    assert huggingface.architecture_of(ModelConfig()).class_name == "Qwen3ForCausalLM"
    architecture = huggingface.architecture_of(ModelConfig(post_norm=True))
    assert architecture.class_name == "Gemma3ForCausalLM"
    assert architecture.reason == "pre_norm and post_norm and qk_norm (head)"


def test_gemmas_ask_that_heads_divide_the_width() -> None:
    reason = refuse_unsupported(ModelConfig(post_norm=True, hidden_size=50, n_heads=3, n_kv_heads=1, head_dim=16))
    assert reason is not None and "n_heads 3 divides hidden_size 50" in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is gpt2; known are llama"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types is"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
    ],
)
def test_what_our_decoder_does_not_have_is_refused_on_the_way_in(change: dict, message: str) -> None:
    decoder = drawn(ModelConfig(n_layers=1, **SHAPES[0]))
    settings, weights = to_huggingface(decoder.state_dict(), decoder.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    with pytest.raises(BadInput, match=message):
        from_huggingface({**settings, **change}, weights)


def test_a_missing_or_unknown_tensor_is_named() -> None:
    decoder = drawn(ModelConfig(n_layers=1, **SHAPES[0]))
    settings, weights = to_huggingface(decoder.state_dict(), decoder.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    name = random.Random(0).choice(sorted(weights))
    with pytest.raises(BadInput, match=name):
        from_huggingface(settings, {key: value for key, value in weights.items() if key != name})


def test_importing_the_module_imports_neither_torch_nor_transformers() -> None:
    tree = ast.parse(Path(sys.modules[huggingface.__name__].__file__ or "").read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert not any(str(name).split(".")[0] in ("torch", "transformers") for name in imported)


def test_the_stage_code_blames_the_section_model_before_any_work() -> None:
    assert list(exportable({"model": ModelConfig(post_norm=True)})) == []
    ((keys, problem),) = exportable({"model": ModelConfig(qk_norm_scope="full")})
    assert keys == ["model"]
    assert problem == (
        "transformers has no decoder with pre_norm and qk_norm_scope full, so it could not be exported; "
        "set qk_norm_scope: head"
    )
