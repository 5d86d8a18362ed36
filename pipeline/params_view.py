"""Every param with its value and where the value comes from, for `millrace params`.

train.max_steps     1200   params.yaml:48
execution.device    cpu    MILLRACE_EXECUTION__DEVICE
model.norm_eps      1e-06  default
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.size import n_parameters, summary
from pipeline.graph import read_graph
from pipeline.smoke import override_params
from stages.code.combinations import check_combinations
from stages.code.sections import SECTIONS, read_sections
from stages.entry import plain
from stages.errors import BadInput
from stages.params import ParamsFile, environment_overrides, field_names, variable_of

PLACE = re.compile(r"^params[.]yaml(:[0-9]+)?: ")


@dataclasses.dataclass(frozen=True)
class Value:
    """A resolved param: `section.key`, its value, and the file with its line, `default`, or a variable."""

    name: str
    value: Any
    origin: str


def resolved(root: Path) -> list[Value]:
    """All params, in the order of the sections and of their keys.

    Raises:
        BadInput: a mistake, as the stage `code` would tell it.
    """
    params = ParamsFile(root / "params.yaml")
    sections = read_sections(params)
    check_combinations(params, sections)
    found = []
    for section, schema in SECTIONS.items():
        values = plain(sections[section])
        for key in field_names(schema):
            found.append(Value(f"{section}.{key}", values[key], _origin(params, section, key)))
    return found


def has_our_gate(root: Path) -> bool:
    """Whether params are judged by Millrace's stage `code`; a graph of one's own may have another."""
    gate = read_graph(root).stages.get("code")
    return gate is None or gate.command.endswith("-m stages.code")


def refuse_wrong(root: Path, overrides: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Judges params.yaml with `overrides` such as `{"train": {"max_steps": 20}}`, before anything is copied or run.

    Args:
        name: of the overrides, for the message.

    Raises:
        BadInput: a mistake, as the stage `code` would tell it.
    """
    if not has_our_gate(root):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text((root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        override_params(path, overrides)
        params = ParamsFile(path)
    params.path = root / "params.yaml"  # files that params name are looked for beside it
    try:
        check_combinations(params, read_sections(params))
    except BadInput as error:
        raise BadInput(f"{name}: {PLACE.sub('', str(error))}") from None


def model_summary(root: Path) -> str:
    """What the model costs, at the largest vocabulary that the tokenizer may get; empty with parts of one's own."""
    sections = read_sections(ParamsFile(root / "params.yaml"))
    config, tokenizer, pack = (sections[name] for name in ("model", "tokenizer", "pack"))
    if config.own_parts:
        return ""
    parameters = n_parameters(config, tokenizer.vocab_size, pack.context_length)
    return f"model: {summary(config, parameters)}, at a vocabulary of {tokenizer.vocab_size:,}"


def _origin(params: ParamsFile, section: str, key: str) -> str:
    if section == "execution" and key in environment_overrides():
        return variable_of(section, key)
    if key in (params.values.get(section) or {}):
        return f"{params.path.name}:{params.line_of([section, key])}"
    return "default"
