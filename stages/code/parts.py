"""The parts of a model that users wrote themselves: they must exist, and their code enters the fingerprints."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import sys
from collections.abc import Iterable, Iterator

from model.config import ModelConfig
from stages.fingerprint.imports import Project
from stages.params import ParamsFile
from stages.portable import followed, left_behind

BUILDER = "model.parts"  # whoever reaches it builds decoders
TRAINER = "stages.train.own"  # whoever reaches it makes hooks and objectives
DECODER = "model.decoder"
BUILT_IN = {
    "model.norm.RMSNorm": "rmsnorm",
    "model.norm.LayerNorm": "layernorm",
    "model.norm.DyT": "dyt",
    "model.mlp.GatedMLP": "swiglu or geglu",
    "model.mlp.PlainMLP": "gelu or relu2",
    "model.attention.Attention": "full or swa",
    "model.latent.LatentAttention": "mla",
    "model.experts.Experts": "swiglu, and set n_experts",
}
# How model/parts.py makes each kind of part.
ARGUMENTS = {"norm": ("size", "eps"), "mlp": ("config",), "layer_pattern": ("config",)}


def own_modules(params: ParamsFile, project: Project, config: ModelConfig) -> list[str]:
    """The modules of all parts that are named by module.

    Raises:
        BadInput: a file or a class in it is not there, or could not go with an export.
    """
    modules: list[str] = []
    if not config.own_parts:
        return modules
    built_in = project.reachable(DECODER, frozenset())
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
        if module in built_in:
            names = BUILT_IN.get(part)
            mend = f"say {names}" if names else "a class of yours stands in a file of its own"
            raise params.fail(["model", key], f"{part} is a part of Millrace; {mend}")
        if problem := wrong_constructor(project, module, name, key):
            raise params.fail(["model", key], f"{part}: {problem}")
        if problem := next(itertools.chain(stays_behind(project, module), not_installed(project, module)), None):
            raise params.fail(["model", key], f"{part}: {problem}")
        modules.append(module)
    return modules


def wrong_constructor(project: Project, module: str, name: str, key: str) -> str | None:
    """Why a class cannot be made from the arguments that a part of this kind gets, or None.

    A class whose bases stand in other packages is left to Python, but for one of torch's Module alone, whose own
    __init__ takes nothing.
    """
    found = constructor(project, module, name, frozenset())
    wanted = ARGUMENTS[key]
    mend = f"it is made as {name}({', '.join(wanted)}); write `def __init__(self, {', '.join(wanted)})`"
    if found is None:
        return None
    if isinstance(found, str):
        return f"{found}: class {name} has no __init__; {mend}"
    place, arguments = found
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    fewest = len(positional) - len(arguments.defaults)
    named = sum(default is None for default in arguments.kw_defaults)
    if fewest <= len(wanted) and (arguments.vararg or len(wanted) <= len(positional)) and not named:
        return None
    return f"{place}: __init__({ast.unparse(arguments)}), but {mend}"


def constructor(
    project: Project, module: str, name: str, seen: frozenset[str]
) -> tuple[str, ast.arguments] | str | None:
    """Place and arguments of the __init__ of a class or of its first base in the project that has one; the place of
    a bare Module; None where that cannot be told, as of classes that are bases of each other."""
    if (class_name := f"{module}.{name}") in seen:
        return None
    seen |= {class_name}
    body = project.tree(module).body if module in project.files else []
    node = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if node is None or node.decorator_list or node.keywords:
        return None
    place = project.files[module].relative_to(project.root).as_posix()
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    if "__new__" in methods:
        return None
    if "__init__" in methods:
        return f"{place}:{methods['__init__'].lineno}", methods["__init__"].args
    if len(node.bases) != 1:
        return None
    base = ast.unparse(node.bases[0])
    if base in ("nn.Module", "Module", "torch.nn.Module"):
        return f"{place}:{node.lineno}"
    for statement in body:
        file = followed(statement)
        for alias in statement.names if isinstance(statement, ast.ImportFrom) and file else ():
            if (alias.asname or alias.name) == base:
                return constructor(project, f"model.{file}", alias.name, seen)
    return constructor(project, module, base, seen)


def not_installed(project: Project, start: str) -> Iterator[str]:
    """The packages that the file of a part, or one that it imports, asks for as soon as it is imported, and that
    this Python does not have."""
    for module in project.reachable(start, frozenset()):
        for node in project.tree(module).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for package in (name.partition(".")[0] for name in names):
                if package not in sys.modules and importlib.util.find_spec(package) is None:
                    place = project.files[module].relative_to(project.root).as_posix()
                    yield f"{place}:{node.lineno}: the package {package} is not installed; install it, or do without"


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
    """What `start` can reach, with the parts of users where it builds decoders, and their hooks where it trains."""
    found = set(project.reachable(start, without))
    for module in own:
        if (BUILDER if module.startswith("model.") else TRAINER) in found:
            found |= set(project.reachable(module, without))
    return sorted(found)
