"""The parts of a model that users wrote themselves: they must exist, and their code enters the fingerprints."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from model.config import ModelConfig
from stages.code.imports import Project
from stages.params import ParamsFile
from stages.portable import followed, left_behind

BUILDER = "model.parts"  # whoever reaches it builds decoders


def own_modules(params: ParamsFile, project: Project, config: ModelConfig) -> list[str]:
    """The modules of all parts that are named by module.

    Raises:
        BadInput: a file or a class in it is not there, or could not go with an export.
    """
    modules = []
    keys = {"norm": (config.norm,), "mlp": (config.mlp,), "layer_pattern": config.kinds}
    for part in config.own_parts:
        key = next(key for key, names in keys.items() if part in names)
        module, _, name = part.rpartition(".")
        path = f"{module.replace('.', '/')}.py"
        if module not in project.files or module.count(".") != 1:
            raise params.fail(["model", key], f"{part}: there is no {path}; a class of yours stands in model/FILE.py")
        classes = [node.name for node in project.tree(module).body if isinstance(node, ast.ClassDef)]
        if name not in classes:
            raise params.fail(
                ["model", key], f"{part}: {path} has no class {name}; it has {', '.join(classes) or 'none'}"
            )
        if problem := next(stays_behind(project, module), None):
            raise params.fail(["model", key], f"{part}: {problem}")
        modules.append(module)
    return modules


def stays_behind(project: Project, start: str) -> Iterator[str]:
    """The imports, in the file of a part and in those that it imports, that an export could not take along."""

    def is_ours(package: str) -> bool:
        return (project.root / package).is_dir() or (project.root / f"{package}.py").exists()

    for module in project.reachable(start, frozenset()):
        if not module.startswith("model."):
            continue
        path, tree = project.files[module], project.tree(module)
        place = path.relative_to(project.root).as_posix()
        for line, text in left_behind(tree, path.read_bytes(), is_ours):
            yield (
                f"{place}:{line}: `{text}` cannot go with an export, which holds files of model/ alone; "
                "write `from model.FILE import NAME` on a line of its own"
            )
        for node in ast.walk(tree):
            if (name := followed(node)) and f"model.{name}" not in project.files:
                yield f"{place}:{node.lineno}: there is no model/{name}.py"  # type: ignore[attr-defined]


def reachable(project: Project, start: str, without: frozenset[str], own: Iterable[str]) -> list[str]:
    """What `start` can reach, with the parts of users where it builds decoders."""
    found = set(project.reachable(start, without))
    if BUILDER in found:
        for module in own:
            found |= set(project.reachable(module, without))
    return sorted(found)
