"""Reads params.yaml into typed sections, and explains a mistake in one line.

A section is a frozen schema: a pydantic model that derives from `Section`, or a frozen dataclass.
The file is YAML 1.2, as DVC reads it (`1e-3` is a number). `MILLRACE_EXECUTION__DEVICE=cpu` in the
environment overrides `execution.device`; no other section can be overridden that way, because DVC
would not see it. A mistake becomes, for example:

    params.yaml:41: model.n_kv_head: unknown key; did you mean n_kv_heads?
    MILLRACE_EXECUTION__THREADS: execution.threads: input should be a valid integer, not 'two'
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import BadInput

ENVIRONMENT_PREFIX = "MILLRACE_"


class Section(BaseModel):
    """Base of the schemas: frozen, no unknown key, no silent conversion of types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ParamsFile:
    """params.yaml as plain values, with the line of every key for messages."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.values: Any = YAML(typ="rt").load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise BadInput(f"{path}: not found; run this in the root of the repository") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            problem = str(getattr(error, "problem", None) or error).split("\n")[0]
            raise BadInput(f"{path.name}{line}: not valid YAML: {problem}") from None
        if not isinstance(self.values, Mapping):
            raise BadInput(f"{path.name}: must hold sections such as `train:` with keys below them")

    def line_of(self, keys: list[str]) -> int | None:
        """The line (from 1) of the innermost key of `keys` that stands in the file."""
        node, line = self.values, None
        for key in keys:
            if not isinstance(node, Mapping) or key not in node:
                break
            line = node.lc.key(key)[0] + 1  # type: ignore[attr-defined]
            node = node[key]
        return line

    def fail(self, keys: list[str], problem: str) -> BadInput:
        line = self.line_of(keys)
        place = f"{self.path.name}:{line}" if line else self.path.name
        return BadInput(f"{place}: {'.'.join(keys)}: {problem}")

    def section(self, name: str, schema: type) -> Any:
        """The section `name` as an instance of `schema`.

        Raises:
            BadInput: an unknown key, a wrong type, or a value that the schema refuses.
        """
        values = self.values.get(name)
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise self.fail([name], "must hold keys, one a line")
        values = _plain(values)
        overrides = environment_overrides() if name == "execution" else {}
        values = {**values, **overrides}
        try:
            checked = strict(schema).model_validate(values)
            if issubclass(schema, BaseModel):
                return checked
            return schema(**{key: getattr(checked, key) for key in field_names(schema)})
        except ValidationError as error:
            keys, problem = _explain(error, schema, values)
        except ValueError as error:  # from the __post_init__ of a dataclass
            keys, problem = _blamed(str(error), field_names(schema))
        if keys and keys[0] in overrides:
            raise BadInput(f"{variable_of(name, keys[0])}: {'.'.join([name, *keys])}: {problem}")
        raise self.fail([name, *keys], problem)

    def check_section_names(self, known: list[str]) -> None:
        for name in self.values:
            if name not in known:
                raise self.fail([str(name)], "unknown section" + _nearest(str(name), known))


def strict(schema: type) -> type[BaseModel]:
    """The schema itself, or the fields of a dataclass as a `Section`.

    On a plain dataclass pydantic would read "4" as 4 and pass over unknown keys.
    """
    if issubclass(schema, BaseModel):
        return schema
    types = get_type_hints(schema)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        default = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = Field(default_factory=field.default_factory)
        fields[field.name] = (types[field.name], default)
    return create_model(schema.__name__, __base__=Section, **fields)


def field_names(schema: type) -> list[str]:
    """The keys of a section, in the order in which they are declared."""
    return list(strict(schema).model_fields)


def variable_of(section: str, key: str) -> str:
    """The name of the environment variable that overrides a key."""
    return f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()


def environment_overrides(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Values of `execution` that the environment overrides, such as `MILLRACE_EXECUTION__DEVICE=cpu`.

    Raises:
        BadInput: a variable names another section. DVC cannot see it, and would save the outputs
            in its run cache as those of the params in the file.
    """
    overrides = {}
    for variable, text in sorted((os.environ if environment is None else environment).items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        section, _, key = variable[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
        if section != "execution":
            raise BadInput(
                f"{variable}: the environment may override `execution` alone, because DVC does not "
                f"see it; use `dvc exp run -S {section}.{key}={text}`"
            )
        try:
            overrides[key] = YAML(typ="safe").load(text) if text else ""
        except YAMLError:
            raise BadInput(f"{variable}: {text!r} is not valid YAML; quote it as you would in params.yaml") from None
    return overrides


def _explain(errors: ValidationError, schema: type, values: Any) -> tuple[list[str], str]:
    """The keys, below the section, that the first mistake is about, and the problem in one line.

    A value that fits no branch of `int | Literal["auto"]` gives one mistake a branch: they are joined.
    """
    first, *others = errors.errors(include_url=False)
    keys, depth = [], 0
    for part in first["loc"]:  # such as ("micro_batch", "int"): the end may name a branch, no key
        if isinstance(values, Mapping) and part in values:
            keys.append(str(part))
        elif not (isinstance(values, list) and isinstance(part, int)):
            break
        values, depth = values[part], depth + 1
    if first["type"] == "missing":
        return [*keys, str(first["loc"][-1])], "is missing"
    if first["type"] == "extra_forbidden":
        for key in keys[:-1]:  # into sections within the section
            schema = strict(schema).model_fields[key].annotation  # type: ignore[assignment]
        return keys, "unknown key" + _nearest(keys[-1], field_names(schema))
    if first["type"] in ("value_error", "assertion_error"):
        problem = str(first["ctx"]["error"])
        return (keys, problem) if keys else _blamed(problem, field_names(schema))
    branches = [first, *(other for other in others if other["loc"][:depth] == first["loc"][:depth])]
    problems = " or ".join(dict.fromkeys(_should(error["msg"]) for error in branches)).replace(" or be ", " or ")
    return keys, f"input should {problems}, not {first['input']!r}"


def _should(message: str) -> str:
    """What pydantic says that an input should do: "List should have at least 1 item after validation, not 0" gives
    "have at least 1 item"."""
    _, found, what = message.replace("a valid boolean", "true or false").partition(" should ")
    return re.sub(r" after validation, not .*", "", what) if found else message


def _blamed(problem: str, known: list[str]) -> tuple[list[str], str]:
    """The key that a problem begins with, if it is one of the section, and the problem without saying it twice.

    Example: "n_heads 3 does not divide" is about n_heads, of which "3 does not divide" remains.
    """
    first, _, rest = problem.partition(" ")
    key = first.rstrip(":")
    if key not in known:
        return [], problem
    return [key], problem if rest.startswith(("and ", "+ ")) else rest


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _plain(node: Any) -> Any:
    """ruamel's containers and scalars as Python's own, which strict schemas ask for."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
