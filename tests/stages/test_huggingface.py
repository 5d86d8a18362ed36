"""Our decoder and its twin in transformers compute the same logits, whichever of them the weights come from.

`pytest tests/stages/test_huggingface.py -o junit_family=xunit1 --junitxml=FILE` records the largest difference
of every case.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import stages
from stages.errors import BadInput
from stages.huggingface import architecture_of, from_huggingface, to_huggingface
from stages.huggingface_weights import as_on_the_hub
from tests.stages.twins import (
    CONTEXT_LENGTH,
    OURS,
    THEIRS,
    TOKEN_IDS,
    TOLERANCE,
    VOCAB_SIZE,
    decoder,
    difference,
    exported,
    loaded,
    ours_of,
    saved,
    their_model,
)


@pytest.mark.parametrize("case", OURS)
def test_ours_becomes_a_model_of_transformers(case: str, record_property: Callable[[str, object], None]) -> None:
    model_type, changes = OURS[case]
    made = decoder(ours_of(changes))
    settings, weights = exported(made)
    assert settings["model_type"] == model_type == architecture_of(made.config).model_type
    largest = difference(made, loaded(settings, weights))
    record_property("difference", largest)
    assert largest < TOLERANCE


@pytest.mark.parametrize("case", OURS)
def test_and_comes_back_as_the_same_decoder(case: str) -> None:
    made = decoder(ours_of(OURS[case][1]))
    settings, weights = exported(made)
    config, again = from_huggingface(json.loads(json.dumps(settings)), weights)
    ntk = config.rope_theta if made.config.rope_scaling == "ntk" else None
    expected = dataclasses.replace(
        made.config,
        **({"rope_scaling": "none", "rope_factor": 1.0, "rope_theta": ntk} if ntk else {}),
        fused_qkv=False,
        qk_norm_gain=True,
        layer_pattern=config.layer_pattern,
    )
    assert config.kinds == made.config.kinds
    assert config.width_of_head == expected.width_of_head
    assert (config.width_of_expert if config.n_experts else config.width_of_mlp) == (
        expected.width_of_expert if config.n_experts else expected.width_of_mlp
    )
    free = {"head_dim", "intermediate_size", "expert_size"}  # compared above
    free |= {"n_kv_heads"} if "mla" in config.kinds else set()  # not read there
    free |= set() if config.qk_norm else {"qk_norm_scope"}
    found, wanted = dataclasses.asdict(config), dataclasses.asdict(expected)
    assert [key for key in found if key not in free and found[key] != wanted[key]] == []
    returned = decoder(config, again)
    inputs = torch.arange(CONTEXT_LENGTH)[None]
    with torch.no_grad():
        assert torch.allclose(returned(inputs), made(inputs), atol=1e-6 if "gemma" not in case else TOLERANCE)


@pytest.mark.parametrize("case", THEIRS)
def test_a_folder_of_transformers_becomes_ours_and_is_written_back(
    case: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    theirs = their_model(case)
    settings, weights = saved(theirs, tmp_path / "theirs")
    config, ours = from_huggingface(settings, weights)
    made = decoder(config, ours)
    largest = difference(made, theirs)
    record_property("difference", largest)
    assert largest < TOLERANCE

    again, tensors = exported(made)
    memory = theirs.state_dict()
    for name, tensor in tensors.items():
        if "gemma" in case:  # gains and embeddings are computed, so they may differ by their rounding
            assert torch.allclose(tensor, memory[name], rtol=1e-6, atol=1e-6), name
        elif "halves" not in case:  # written back with neighbours rotated together
            assert torch.equal(tensor, memory[name]), name
    assert set(memory) - set(tensors) <= {"lm_head.weight"}
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(again))
    hub = as_on_the_hub(again["model_type"], tensors)
    save_file(hub, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    attention = "eager" if "gemma2" in case else "sdpa"
    opened, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation=attention
    )
    assert not any(loading.values()), loading
    assert difference(made, opened) < TOLERANCE


@pytest.mark.parametrize("case", ["llama, fused", "qwen3, no gain, fused", "gemma2", "qwen3_moe", "gpt2"])
def test_arrays_of_numpy_are_exported_to_the_same_file_as_tensors(case: str, tmp_path: Path) -> None:
    made = decoder(ours_of(OURS[case][1]))
    save_file(made.state_dict(), tmp_path / "checkpoint.safetensors")
    arrays = load_arrays(tmp_path / "checkpoint.safetensors")
    _, from_arrays = to_huggingface(arrays, made.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    save_arrays(from_arrays, tmp_path / "arrays.safetensors")
    save_file(exported(made)[1], tmp_path / "tensors.safetensors")
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("arrays", "tensors"))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_files_of_gpt2_on_the_hub_have_masks_and_no_first_name() -> None:
    theirs = their_model("gpt2")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    del weights["lm_head.weight"]
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    settings = {"model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_ctx": 48, **THEIRS["gpt2"]}
    config, ours = from_huggingface(settings, weights)
    assert config.norm_eps == 1e-5 and config.tie_embeddings and config.mlp == "gelu"
    assert ours["position_embedding.weight"].shape == (CONTEXT_LENGTH, 64)
    assert difference(decoder(config, ours), theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "folder", "parts"),
    [("mixtral", "block_sparse_moe", ("w1", "w3", "w2")), ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj"))],
)
def test_the_files_of_experts_on_the_hub_hold_each_by_itself(case: str, folder: str, parts: tuple[str, ...]) -> None:
    theirs = their_model(case)
    weights = {}
    for name, tensor in theirs.state_dict().items():
        block = name.rpartition("mlp.experts")[0] + folder
        if name.endswith("experts.gate_up_proj"):
            for expert, (gate, up) in enumerate(matrix.chunk(2) for matrix in tensor):
                weights[f"{block}.experts.{expert}.{parts[0]}.weight"] = gate
                weights[f"{block}.experts.{expert}.{parts[1]}.weight"] = up
        elif name.endswith("experts.down_proj"):
            weights |= {f"{block}.experts.{e}.{parts[2]}.weight": matrix for e, matrix in enumerate(tensor)}
        else:
            weights[name.replace("mlp.gate.weight", f"{folder}.gate.weight")] = tensor
    settings = json.loads(json.dumps(theirs.config.to_dict()))
    config, ours = from_huggingface(settings, weights)
    assert torch.equal(ours["blocks.1.mlp.load"], torch.full((5,), 0.2))
    assert difference(decoder(config, ours), theirs) < TOLERANCE

    lost = f"model.layers.1.{folder}.experts.3.{parts[1]}.weight"
    with pytest.raises(BadInput, match=lost):
        from_huggingface(settings, {name: tensor for name, tensor in weights.items() if name != lost})
    extra = f"model.layers.1.{folder}.experts.5.{parts[1]}.weight"
    with pytest.raises(BadInput, match=extra):
        from_huggingface(settings, {**weights, extra: weights[lost]})


def test_weights_in_bf16_become_fp32_of_the_same_values() -> None:
    theirs = their_model("llama")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(weights)  # rounded
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as in files of old
    config, ours = from_huggingface(theirs.config.to_dict(), weights)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert difference(decoder(config, ours), theirs) < TOLERANCE


def test_rows_beyond_the_vocabulary_are_padding() -> None:
    made = decoder(ours_of({"tie_embeddings": False}))
    assert len(made.embedding.weight) == 256
    settings, theirs = exported(made)
    assert theirs["model.embed_tokens.weight"].shape == theirs["lm_head.weight"].shape == (VOCAB_SIZE, 64)
    _, ours = from_huggingface(settings, theirs)
    assert ours["embedding.weight"].shape == (256, 64) and not ours["embedding.weight"][VOCAB_SIZE:].any()
    with pytest.raises(
        BadInput, match=r"model\.embed_tokens\.weight is \[151, 64\]; by config\.json it is \[150, 64\]"
    ):
        from_huggingface({**settings, "vocab_size": 150}, theirs)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_a_missing_or_unknown_tensor_is_named(name: str) -> None:
    settings, weights = exported(decoder(ours_of({})))
    with pytest.raises(BadInput, match=f"{name} is missing"):
        from_huggingface(settings, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(BadInput, match="q_proj.bias is missing or has no place in Qwen3ForCausalLM"):
        from_huggingface(settings, {**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)})


def test_no_module_imports_torch_or_transformers() -> None:
    for path in Path(stages.__file__).parent.glob("huggingface*.py"):
        tree = ast.parse(path.read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        assert not {str(name).split(".")[0] for name in imported} & {"torch", "transformers", "numpy"}
