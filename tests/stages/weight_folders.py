"""Folders of first weights, as tests of stages/first_weights.py write and read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.decoder import Decoder
from stages.code.combinations import initial_weights
from stages.entry import Job
from stages.execution import Execution
from stages.export.own_code import own_settings, own_weights
from stages.files import file_sha256, write_json
from stages.huggingface import to_huggingface
from stages.pack.params import PackParams
from stages.tokenizer.params import TokenizerParams
from stages.train.initial import load_initial_weights
from stages.train.params import TrainParams

VOCABULARY, CONTEXT = 61, 16
OTHER = "ab" * 32  # the sha256 of no file here
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
PLAIN = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)
GPT2 = dataclasses.replace(
    PLAIN, n_kv_heads=4, norm="layernorm", positions="learned", mlp="gelu", bias=True, qk_norm=False
)
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
HYBRID = dataclasses.replace(PLAIN, n_layers=3, layer_pattern="swa*2+mla", window=5, **LATENT)
EXPERTS = dataclasses.replace(PLAIN, n_experts=4, n_shared_experts=1, expert_size=16, norm="dyt")
GEMMA = dataclasses.replace(PLAIN, post_norm=True)


def drawn(config: ModelConfig, vocab_size: int = VOCABULARY, seed: int = 5) -> Decoder:
    """A decoder in which every tensor, gains and biases included, is its own."""
    decoder, generator = Decoder(config, vocab_size, CONTEXT), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in decoder.state_dict().values():
            tensor.normal_(0.5, 0.2, generator=generator)
    return decoder


def export_folder(folder: Path, decoder: Decoder, own: bool = False) -> ModelConfig:
    """Writes it as transformers reads it; the config whose first weights these are."""
    folder.mkdir(parents=True)
    sizes = decoder.vocab_size, CONTEXT
    if own:
        settings = own_settings(decoder.config, *sizes, TOKENS)
        tensors = own_weights(decoder.state_dict())
    else:
        settings, tensors = to_huggingface(decoder.state_dict(), decoder.config, *sizes, TOKENS)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    write_json(folder / "config.json", settings)
    return started(decoder.config, folder)


def started(config: ModelConfig, folder: Path) -> ModelConfig:
    return dataclasses.replace(config, init_sha256=file_sha256(folder / "model.safetensors"))


def load(
    config: ModelConfig, root: Path, tokenizer_sha256: str = "0" * 64, n: int = CONTEXT
) -> dict[str, torch.Tensor]:
    """What train starts with, of the folder `theirs` in this workspace."""
    decoder = Decoder(config, VOCABULARY, n)
    index = {"tokenizer_sha256": tokenizer_sha256, "context_length": n}
    load_initial_weights(decoder, Job("train", root, Execution(init_from="theirs")), index)
    return decoder.state_dict()


def problem_in_code(config: ModelConfig, root: Path, folder: str = "theirs", n: int = CONTEXT, given: str = "") -> str:
    """What the stage `code` says, with the key; empty if it finds nothing."""
    execution, pack = Execution(init_from=folder), PackParams(context_length=n)
    tokenizer = TokenizerParams(file=given, file_sha256=OTHER if given else "")
    sections = {
        "model": config, "train": TrainParams(), "execution": execution, "pack": pack, "tokenizer": tokenizer,
    }  # fmt: skip
    found = initial_weights(sections, root)
    return "".join(f"{'.'.join(keys)}: {problem}" for keys, problem in found)
