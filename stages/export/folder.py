"""Writes the folder that transformers loads: weights, configuration, tokenizer.

    model.safetensors       the tensors of the twin architecture (stages/huggingface.py), fp32
    config.json             the architecture in the form of transformers 5
    generation_config.json  where a text begins and ends
    tokenizer.json          ours, and it puts <|endoftext|> before every text
    tokenizer_config.json   makes it a PreTrainedTokenizerFast
    chat_template.jinja     ChatML, where the tokenizer has its tokens <|im_start|> and <|im_end|>
    modeling_millrace.py .. our own code, if transformers has no such architecture (own_code.py)

In training every document stands behind <|endoftext|>, so a prompt without it is something that the
model has never seen. Example: "a b" becomes the ids of <|endoftext|>, a, b, as Llama's <s> does.

Equal checkpoints give equal bytes: no file holds a time, a path or a library's version.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from stages.checkpoint import refused_by_system
from stages.export.own_code import own_settings, own_weights, write_code
from stages.files import write_json
from stages.huggingface import to_huggingface
from stages.huggingface_twins import twin_of
from stages.huggingface_weights import as_on_the_hub
from stages.vocabulary import roles_of
from stages.weights_file import readable

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
TURN = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)


def write_folder(
    folder: Path, checkpoint: Path, config: ModelConfig, vocab_size: int, context_length: int, tokenizer: Path
) -> dict[str, int]:
    """Writes everything but the model card. Returns bos_token_id, eos_token_id and pad_token_id.

    Args:
        checkpoint: a folder with model.safetensors; `config` and `vocab_size` are those of its config.json.
        tokenizer: tokenizer.json as the stage `tokenizer` wrote it.

    Raises:
        BadInput: the tokenizer lacks a special token.
    """
    from safetensors.numpy import load_file, save_file

    token_ids = write_tokenizer(folder, tokenizer, context_length)
    ours = load_file(checkpoint / "model.safetensors")
    if twin_of(config) is None:
        write_code(folder, config)
        settings, theirs = own_settings(config, vocab_size, context_length, token_ids), own_weights(ours)
    else:
        settings, theirs = to_huggingface(ours, config, vocab_size, context_length, token_ids)
        theirs = as_on_the_hub(settings["model_type"], theirs)
    path = folder / "model.safetensors"
    with refused_by_system(path):
        save_file(theirs, path, metadata={"format": "pt"})
        readable(path)
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", token_ids)
    return token_ids


def write_tokenizer(folder: Path, tokenizer: Path, context_length: int) -> dict[str, int]:
    """Writes both tokenizer files. Returns bos_token_id, eos_token_id and pad_token_id."""
    from tokenizers import Tokenizer, processors

    ours = Tokenizer.from_file(str(tokenizer))
    end_of_text, padding = roles_of(tokenizer)
    ids = {token: found for token in (end_of_text, padding) if (found := ours.token_to_id(token)) is not None}
    begin = processors.TemplateProcessing(
        single=f"{end_of_text} $A", pair=f"{end_of_text} $A $B:1", special_tokens=[(end_of_text, ids[end_of_text])]
    )
    # what another tokenizer puts around a text is not what training put there
    keeps = type(ours.post_processor).__name__ == "ByteLevel"
    ours.post_processor = processors.Sequence([ours.post_processor, begin]) if keeps else begin
    (folder / "tokenizer.json").write_text(ours.to_str(pretty=True) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "pad_token": padding,
        "padding_side": "left",
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    if all(ours.token_to_id(token) is not None for token in TURN):
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return {"bos_token_id": ids[end_of_text], "eos_token_id": ids[end_of_text], "pad_token_id": ids[padding]}


def copy_tokenizer(hf: Path, folder: Path) -> None:
    """The tokenizer of `hf`, so that another folder stands by itself."""
    for name in TOKENIZER_FILES:
        if (hf / name).is_file():
            shutil.copyfile(hf / name, folder / name)
