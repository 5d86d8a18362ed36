"""Recipes: params for a machine and a corpus, put over params.yaml by `millrace run --recipe NAME`.

A recipe is a YAML file below recipes/ with sections and keys as in params.yaml. What it does not name stays as it
is. Like `-S`, a run with a recipe works in a git worktree beside and is kept as an experiment; `smoke` has a copy
with data, cache and tracking of its own.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import BadInput

FOLDER = "recipes"


def recipe_names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def read_recipe(root: Path, name: str) -> dict[str, dict[str, Any]]:
    """The params of a recipe, by section.

    Raises:
        BadInput: no such recipe, with the nearest name, or no sections in it.
    """
    path = root / FOLDER / f"{name}.yaml"
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = recipe_names(root)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none'}"
        raise BadInput(f"--recipe {name}: no {FOLDER}/{name}.yaml; {hint}") from None
    except YAMLError as error:
        raise BadInput(f"{FOLDER}/{name}.yaml: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, Mapping) or not all(isinstance(values, Mapping) for values in content.values()):
        raise BadInput(f"{FOLDER}/{name}.yaml: must hold sections such as `train:` with keys below them")
    return {str(section): dict(values) for section, values in content.items()}


def settings_of(recipe: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The recipe as `-S` has settings: `train.max_steps=1200`. JSON is YAML."""
    return [
        f"{section}.{key}={json.dumps(value)}" for section, values in recipe.items() for key, value in values.items()
    ]
