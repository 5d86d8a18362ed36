"""GGUF files hold the decoder; llama.cpp computes with them what it computes (skipped without its Python binding)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from model.config import ModelConfig
from model.decoder import Decoder
from stages.code.combinations import exportable, readable_by_llama_cpp
from stages.export.folder import write_tokenizer as write_hf_tokenizer
from stages.export.gguf_file import Misread, compare, neighbours, renamed, write_gguf
from stages.export.params import ExportParams
from stages.gguf_names import problem_of_model, problem_of_tokenizer
from stages.huggingface import to_huggingface
from stages.huggingface_weights import as_on_the_hub
from stages.tokenizer.params import TokenizerParams
from tests.stages.exports import TEXTS, write_tokenizer
from tests.stages.twins import CONTEXT_LENGTH, OURS, TOKEN_IDS, decoder, ours_of

VOCABULARY = 300
WRITTEN = (
    "llama, biases",
    "llama, linear",
    "mistral, uneven heads",
    "qwen3, no gain, fused",
    "olmo2",
    "mixtral",
    "gpt2",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learned") / "data/tokenizer.json"
    write_tokenizer(path, chat=True)
    return path


def folder_of(root: Path, case: str, tokenizer: Path) -> tuple[Path, Decoder]:
    """hf/ of a random decoder, and an empty gguf/ beside it."""
    made = decoder(ours_of(OURS[case][1]), vocab_size=VOCABULARY)
    settings, weights = to_huggingface(made.state_dict(), made.config, VOCABULARY, CONTEXT_LENGTH, TOKEN_IDS)
    for name in ("hf", "gguf"):
        (root / name).mkdir(parents=True)
    write_hf_tokenizer(root / "hf", tokenizer, CONTEXT_LENGTH)
    (root / "hf/config.json").write_text(json.dumps(settings))
    (root / "hf/generation_config.json").write_text(json.dumps(TOKEN_IDS))
    save_file(as_on_the_hub(settings["model_type"], weights), root / "hf/model.safetensors")
    return root, made


def test_rows_that_are_rotated_together_stand_together() -> None:
    assert neighbours(np.arange(8.0), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    heads = np.arange(24.0).reshape(8, 3)
    assert neighbours(heads, 4)[:, 0].tolist() == [0, 6, 3, 9, 12, 18, 15, 21]


def test_a_file_holds_settings_tokens_and_tensors(tokenizer: Path, tmp_path: Path) -> None:
    root, made = folder_of(tmp_path, "qwen3", tokenizer)
    write_gguf(root / "hf", root / "gguf", ["f32", "q8_0"])
    file = gguf.GGUFReader(root / "gguf/model-f32.gguf")
    settings = {name: field.contents() for name, field in file.fields.items()}
    assert settings["general.architecture"] == "qwen3" and settings["qwen3.attention.head_count_kv"] == 2
    assert settings["tokenizer.ggml.tokens"][:2] == ["<|endoftext|>", "<|pad|>"]
    assert settings["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 3, 1]
    assert settings["tokenizer.ggml.add_bos_token"] and "<|im_start|>" in settings["tokenizer.chat_template"]
    found = {tensor.name: tensor for tensor in file.tensors}
    weights = made.state_dict()
    assert np.array_equal(found["token_embd.weight"].data, weights["embedding.weight"][:VOCABULARY])
    assert np.array_equal(found["blk.1.ffn_down.weight"].data, weights["blocks.1.mlp.down.weight"])
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(root / "gguf/model-q8_0.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.attn_norm.weight"] == "F32"


def test_equal_folders_give_equal_bytes_and_a_changed_tensor_is_named(tokenizer: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "other"):
        root, _ = folder_of(tmp_path / name, "llama", tokenizer)
        write_gguf(root / "hf", root / "gguf", ["f16"])
        files.append(root / "gguf/model-f16.gguf")
    content = files[0].read_bytes()
    assert content == files[1].read_bytes() and str(tmp_path).encode() not in content
    files[0].write_bytes(content[:-64] + bytes(64))
    from safetensors.numpy import load_file

    wanted = renamed(json.loads((root / "hf/config.json").read_text()), load_file(root / "hf/model.safetensors"))
    compare(files[1], wanted)
    with pytest.raises(Misread, match=r"model-f16\.gguf: output_norm\.weight is not what it should be in f32"):
        compare(files[0], wanted)


@pytest.mark.parametrize("case", WRITTEN)
def test_every_model_that_is_written_reads_back(case: str, tokenizer: Path, tmp_path: Path) -> None:
    root, _ = folder_of(tmp_path, case, tokenizer)
    write_gguf(root / "hf", root / "gguf", ["f32", "f16", "q8_0"])
    assert len(list((root / "gguf").iterdir())) == 3


def test_what_llama_cpp_has_not_is_refused_before_any_work(tokenizer: Path, tmp_path: Path) -> None:
    asked = ExportParams(formats=["hf", "gguf"])
    problems = {case: problem_of_model(ours_of(changes)) for case, (_, changes) in OURS.items()}
    assert not any(problems[case] for case in WRITTEN)
    assert problems["llama, yarn"] == "is written with rope_scaling none, linear, ntk, not yarn"
    assert "this model is a DeepseekV3ForCausalLM" in problems["deepseek_v3"]
    assert "gelu for GPT2" in problems["gpt2, untied, fused, relu2"]
    windows = ModelConfig(layer_pattern="swa", window=8, sink_tokens=0, qk_norm=False)
    [(keys, told)] = exportable({"model": windows, "export": asked})
    assert keys == ["export", "formats"] and told.startswith("gguf is written without windows")
    given: dict[str, Any] = {"export": asked, "tokenizer": TokenizerParams(max_digits=2)}
    [(_, told)] = readable_by_llama_cpp(given, tmp_path)
    assert told == "gguf cuts digits in groups of 3 or 1; tokenizer.max_digits is 2; leave gguf out of the list"
    assert not problem_of_tokenizer(json.loads(tokenizer.read_text()))
    assert not list(readable_by_llama_cpp({**given, "export": ExportParams()}, tmp_path))


@pytest.mark.parametrize("case", WRITTEN)
def test_llama_cpp_computes_what_the_decoder_computes(case: str, tokenizer: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    root, made = folder_of(tmp_path, case, tokenizer)
    write_gguf(root / "hf", root / "gguf", ["f32"])
    opened = llama_cpp.Llama(str(root / "gguf/model-f32.gguf"), n_ctx=CONTEXT_LENGTH, logits_all=True, verbose=False)
    ours = Tokenizer.from_file(str(root / "hf/tokenizer.json"))
    for text in [*TEXTS, "we're 12345 x\n\n\n  y \t z!!\n"]:
        assert opened.tokenize(text.encode(), special=False) == ours.encode(text).ids
    ids = ours.encode(TEXTS[0]).ids[:24]
    opened.eval(ids)
    with torch.inference_mode():
        wanted = made(torch.tensor([ids]))[0].numpy()
    found = np.array(opened.scores[: len(ids)])
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()  # its caches are f16
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.9
