"""Writes GGUF, the one file that llama.cpp, and what is built on it, take a model from.

    gguf/model-f16.gguf     settings, tokenizer with its chat template, and tensors: matrices in 16 bits
    gguf/model-q8_0.gguf    matrices in 8 bits, with a scale in f16 for 32 weights: 8.5 bits a weight

It is made from the folder hf: names follow gguf_names.py, and two things differ. llama.cpp rotates neighbouring rows of
a Llama's queries and keys, transformers row i and row i + d/2 of each head of d: so the rows 0 1 2 3 of a head of 4,
with the pairs (0, 2) and (1, 3), are written as 0 2 1 3. And GPT-2's matrices are transposed. Norms, biases and routers
stay f32; a matrix whose inputs 32 does not divide is f16 in q8_0.

Every file is read again, and each tensor compared with what it should be: equal in f32 and f16 (rounded to nearest),
within half a step in q8_0. Equal folders give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.checkpoint import refused_by_system
from stages.errors import BadInput, Failed
from stages.gguf_names import (
    ARCHITECTURES,
    EXPERT,
    EXPERT_PARTS,
    PRE_TOKENIZERS,
    gguf_name,
    problem_of_tokenizer,
)
from stages.pretoken_rules import rule_of

Floats = npt.NDArray[np.float32]
BLOCK = 32  # weights of q8_0 that share a scale
F32_ALWAYS = ("ffn_gate_inp.weight", "position_embd.weight")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


class Misread(Failed):
    """A file that holds something else than was written."""


def write_gguf(hf: Path, folder: Path, types: Sequence[str]) -> None:
    """Writes model-TYPE.gguf for each of `types`: f32, f16, q8_0.

    Args:
        hf: the folder that transformers loads, of an architecture that gguf_names.py knows.

    Raises:
        BadInput: a tokenizer that llama.cpp has not.
        Misread: a file that was read again holds something else.
    """
    from safetensors.numpy import load_file

    settings = json.loads((hf / "config.json").read_text(encoding="utf-8"))
    tensors = renamed(settings, load_file(hf / "model.safetensors"))
    for type_name in types:
        path = folder / f"model-{type_name}.gguf"
        with refused_by_system(path):
            write_file(path, type_name, settings, hf, tensors)
        compare(path, tensors)


def renamed(settings: Mapping[str, Any], weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """The tensors of transformers as llama.cpp wants them."""
    model_type = settings["model_type"]
    found: dict[str, Floats] = {}
    experts: dict[str, dict[int, Floats]] = {}
    for name, tensor in weights.items():
        if of_expert := EXPERT.fullmatch(name):
            layer, number, part = of_expert.groups()
            experts.setdefault(f"blk.{layer}.ffn_{EXPERT_PARTS[part]}_exps.weight", {})[int(number)] = tensor
            continue
        if ARCHITECTURES[model_type] == "llama" and (".q_proj." in name or ".k_proj." in name):
            tensor = neighbours(tensor, settings["head_dim"])
        if model_type == "gpt2" and ".c_" in name:
            tensor = tensor.T
        found[gguf_name(model_type, name)] = tensor
    found |= {name: np.stack([parts[e] for e in sorted(parts)]) for name, parts in sorted(experts.items())}
    if model_type == "olmo2":  # llama.cpp ties the head for the others
        found.setdefault("output.weight", found["token_embd.weight"])
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in found.items()}


def neighbours(tensor: Floats, head_dim: int) -> Floats:
    """Rows i and i + d/2 of each head side by side."""
    return tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def write_file(
    path: Path, type_name: str, settings: Mapping[str, Any], hf: Path, tensors: Mapping[str, Floats]
) -> None:
    import gguf

    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer = gguf.GGUFWriter(path, ARCHITECTURES[settings["model_type"]])
    writer.add_file_type(gguf.LlamaFileType[file_types[type_name]])
    if type_name == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_settings(writer, settings)
    add_tokenizer(writer, hf, settings["vocab_size"])
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[stored_type(name, tensor.shape, type_name).upper()]
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_type(name: str, shape: Sequence[int], type_name: str) -> str:
    if len(shape) == 1 or name.endswith(F32_ALWAYS):
        return "f32"
    return "f16" if type_name == "q8_0" and shape[-1] % BLOCK else type_name


def add_settings(writer: Any, settings: Mapping[str, Any]) -> None:
    """The hyper-parameters, by llama.cpp's names."""
    import gguf

    writer.add_vocab_size(settings["vocab_size"])
    if settings["model_type"] == "gpt2":
        writer.add_context_length(settings["n_positions"])
        writer.add_embedding_length(settings["n_embd"])
        writer.add_block_count(settings["n_layer"])
        writer.add_feed_forward_length(settings["n_inner"])
        writer.add_head_count(settings["n_head"])
        writer.add_layer_norm_eps(settings["layer_norm_epsilon"])
        return
    rope = settings["rope_parameters"]
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_key_length(settings["head_dim"])
    writer.add_value_length(settings["head_dim"])
    writer.add_rope_dimension_count(settings["head_dim"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if experts := settings.get("num_local_experts") or settings.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(settings["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(settings.get("moe_intermediate_size", settings["intermediate_size"]))


def add_tokenizer(writer: Any, hf: Path, vocab_size: int) -> None:
    """Vocabulary, merges, how text is cut, and special tokens.

    Raises:
        BadInput: llama.cpp would make other tokens of a text.
    """
    described = json.loads((hf / "tokenizer.json").read_text(encoding="utf-8"))
    if problem := problem_of_tokenizer(described):
        raise BadInput(f"data/tokenizer/tokenizer.json: gguf {problem}; leave gguf out of export.formats")
    rule = rule_of(described["pre_tokenizer"])
    assert rule is not None  # as just asked
    tokens = [f"[unused{number}]" for number in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for text, number in described["model"]["vocab"].items():
        tokens[number], types[number] = text, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[rule])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = json.loads((hf / "generation_config.json").read_text(encoding="utf-8"))
    writer.add_bos_token_id(ids["bos_token_id"])
    writer.add_eos_token_id(ids["eos_token_id"])
    writer.add_pad_token_id(ids["pad_token_id"])
    writer.add_add_bos_token(True)
    if (template := hf / "chat_template.jinja").is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def compare(path: Path, wanted: Mapping[str, Floats]) -> None:
    """Reads the file again.

    Raises:
        Misread: naming the tensor.
    """
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if differing := sorted(found.keys() ^ wanted.keys()):
        raise Misread(f"data/export/gguf/{path.name}: {differing[0]} is in one of file and model alone")
    for name, tensor in wanted.items():
        kind = found[name].tensor_type.name.lower()
        values = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(tensor.shape)
        if not (np.abs(values - tensor) <= allowed(tensor, kind)).all():
            raise Misread(f"data/export/gguf/{path.name}: {name} is not what it should be in {kind}")


def allowed(tensor: Floats, kind: str) -> Any:
    """How far a weight may be from itself: by rounding alone."""
    if kind == "f32":
        return 0
    if kind == "f16":
        return np.abs(tensor) * 2.0**-11 + 2.0**-25
    largest = np.abs(tensor.reshape(-1, BLOCK)).max(axis=1, keepdims=True)
    return np.broadcast_to(largest * (0.5 / 127 + 2.0**-11) + 2.0**-18, (largest.size, BLOCK)).reshape(tensor.shape)
