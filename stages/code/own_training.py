"""Hooks and objectives that users wrote themselves: they must exist, and their code enters train's fingerprint.

So does that of the probes, where params ask for any.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from stages.fingerprint.imports import Project
from stages.params import ParamsFile
from stages.train.params import TrainParams

TRAIN = "stages.train.__main__"
PROBES = "stages.train.probes"
MADE_FROM = {"hooks": (), "objective": ("model", "train")}  # see stages/train/own.py


def own_training_modules(params: ParamsFile, project: Project, train: TrainParams) -> list[str]:
    """The modules of the hooks and of the objective that are named by module, and of the probes if there are any.

    Raises:
        BadInput: a file or a class in it is not there, is one of Millrace, or cannot be made.
    """
    modules = [PROBES] if train.probe_interval else []
    built_in = project.reachable(TRAIN, frozenset())
    for key, name in named(train):
        module, _, class_name = name.rpartition(".")
        path = f"{module.replace('.', '/')}.py"
        if module not in project.files:
            raise params.fail(["train", key], f"{name}: there is no {path}")
        classes = {node.name: node for node in project.tree(module).body if isinstance(node, ast.ClassDef)}
        if class_name not in classes:
            has = ", ".join(classes) or "none"
            raise params.fail(["train", key], f"{name}: {path} has no class {class_name}; it has {has}")
        if module in built_in:
            raise params.fail(
                ["train", key], f"{name} is a part of Millrace; a class of yours stands in a file of its own"
            )
        if problem := wrong_arguments(classes[class_name], MADE_FROM[key]):
            raise params.fail(["train", key], f"{name}: {path}:{problem}")
        modules.append(module)
    return modules


def named(train: TrainParams) -> Iterator[tuple[str, str]]:
    """(key, name) of what is named by module."""
    for name in train.hooks:
        yield "hooks", name
    if "." in train.objective:
        yield "objective", train.objective


def wrong_arguments(node: ast.ClassDef, wanted: tuple[str, ...]) -> str | None:
    """Line and mend of an __init__ of this class that does not take so many arguments, or None."""
    found = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if not found:
        return None
    arguments = found[0].args
    most = len(arguments.posonlyargs) + len(arguments.args) - 1
    fewest = most - len(arguments.defaults)
    required_names = any(default is None for default in arguments.kw_defaults)
    if fewest <= len(wanted) and (arguments.vararg or len(wanted) <= most) and not required_names:
        return None
    return f"{found[0].lineno}: it is made as {node.name}({', '.join(wanted)}), but __init__({ast.unparse(arguments)})"
