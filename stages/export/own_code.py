"""Exports a decoder that transformers does not have, together with the code that computes it.

The folder holds modeling_millrace.py and the files of `model/` that it needs, their imports made relative.
transformers runs them when it is asked to trust the folder (`trust_remote_code=True`). Architectures that
transformers does have go there under their own names instead (stages/huggingface.py) and need no trust.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model
from model.config import ModelConfig
from stages.portable import followed, left_behind, relative

SOURCE = "stages.export.modeling_millrace"  # its full name, so that the fingerprint of the stage holds it
MODELING = SOURCE.rpartition(".")[2]
CLASS_NAME = "MillraceForCausalLM"


def write_code(folder: Path, config: ModelConfig) -> None:
    """modeling_millrace.py and, beside it, every module of `model` that the decoder reaches."""
    text = carried(Path(__file__).with_name(f"{MODELING}.py").read_text(encoding="utf-8"))
    for module, name in sorted(
        part.rsplit(".", 1) for part in config.own_parts
    ):  # transformers copies what is imported
        text += f"\nfrom .{module.removeprefix('model.')} import {name}  # noqa: E402, F401\n"
    pending, written = [text], set()
    (folder / f"{MODELING}.py").write_text(text, encoding="utf-8")
    while pending:
        for name in filter(None, map(followed, ast.walk(ast.parse(pending.pop())))):
            if name not in written:
                written.add(name)
                code = carried((Path(model.__path__[0]) / f"{name}.py").read_text(encoding="utf-8"))
                (folder / f"{name}.py").write_text(code, encoding="utf-8")
                pending.append(code)


def carried(code: str) -> str:
    """The code with its imports of `model` made relative. That all of them can be is checked by the stage `code`."""
    wrong = list(left_behind(ast.parse(code), code.encode(), lambda name: name in ("model", "stages")))
    assert not wrong, f"line {wrong[0][0]}: {wrong[0][1]}: cannot go with an export"
    return relative(code)


def own_settings(
    config: ModelConfig, vocab_size: int, context_length: int, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [CLASS_NAME],
        "auto_map": {"AutoConfig": f"{MODELING}.MillraceConfig", "AutoModelForCausalLM": f"{MODELING}.{CLASS_NAME}"},
        "model_type": "millrace",
        "dtype": "float32",
        "model": dataclasses.asdict(config),
        "vocab_size": vocab_size,
        "context_length": context_length,
        "use_cache": False,
        **token_ids,
    }


def own_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by the names of the class that carries the decoder."""
    return {f"decoder.{name}": tensor for name, tensor in weights.items()}
