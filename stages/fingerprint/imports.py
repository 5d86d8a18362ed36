"""Which files of the project a stage can reach, by imports, directly or through others.

Example: `stages/pack/__main__.py` imports `stages.entry` and `stages.pack.stage`; `stages.entry`
imports `stages.params`; so the code of pack is these four, the packages that hold them, and whatever
else they import, also within a function. A string that is the full name of a module counts as an
import (`importlib.import_module("stages.pack.plan")`, `torchrun -m stages.train.worker`). Imports
below `if TYPE_CHECKING:` never run and do not count.

Files beside a module that are no Python (a template, a kernel's source) count as part of its folder.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from stages.errors import BadInput
from stages.fingerprint.functions import function_hashes
from stages.fingerprint.memo import Memo, Reading
from stages.portable import running

PACKAGES = ("model", "stages")
NOT_CODE = frozenset({".pyc", ".pyo", ".so", ".typed"})
MODULE_NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)*")


class Project:
    """The modules of the project, each read once.

    Attributes:
        files: the path of every module by its dotted name; a package stands for its `__init__.py`.
    """

    def __init__(self, root: Path, memo: Memo | None = None):
        self.root = root
        self.files = dict(_modules(root))
        self._memo = memo
        self._contents: dict[str, bytes] = {}
        self._trees: dict[str, ast.Module] = {}
        self._readings: dict[str, Reading] = {}
        self._imports: dict[str, set[str]] = {}
        self._data_files: dict[Path, list[Path]] = {}

    def tree(self, module: str) -> ast.Module:
        """The syntax tree of a module.

        Raises:
            BadInput: the file is not valid Python, with its line.
        """
        if module not in self._trees:
            path = self.files[module]
            try:
                self._trees[module] = ast.parse(self._content(module), filename=str(path))
            except (SyntaxError, ValueError) as error:
                line = getattr(error, "lineno", None) or 1
                place = f"{path.relative_to(self.root)}:{line}"
                raise BadInput(f"{place}: not valid Python: {getattr(error, 'msg', error)}") from None
        return self._trees[module]

    def hashes(self, module: str) -> dict[str, str]:
        """One hash per function of a module; none for a module that does nothing."""
        return self._reading(module).hashes

    def reachable(self, start: str, without: frozenset[str]) -> list[str]:
        """The modules that `start` can reach, itself included; those in `without` are not entered."""
        seen: set[str] = set()
        waiting = set(self._with_packages(start))
        while waiting:
            module = waiting.pop()
            seen.add(module)
            waiting |= self.imports(module) - seen - without
        return sorted(seen)

    def imports(self, module: str) -> set[str]:
        """The modules of the project that `module` names, with the packages that hold them."""
        if module not in self._imports:
            reading = self._reading(module)
            named = [*reading.imports, *(name for name in reading.strings if name in self.files)]
            self._imports[module] = {part for name in named for part in self._with_packages(name)}
        return self._imports[module]

    def data_files(self, module: str) -> list[Path]:
        """The files beside a module that are not Python, and those in subfolders without Python."""
        folder = self.files[module].parent
        if folder not in self._data_files:
            self._data_files[folder] = sorted(_data_files(folder))
        return self._data_files[folder]

    def _reading(self, module: str) -> Reading:
        if module not in self._readings:
            name, content = self.files[module].relative_to(self.root).as_posix(), self._content(module)
            reading = self._memo.get(name, content) if self._memo else None
            if reading is None:
                tree = self.tree(module)
                strings = {node.value for node in running(tree) if _names_a_module(node)}  # type: ignore[attr-defined]
                reading = Reading(sorted(self._imported(module)), sorted(strings), function_hashes(tree))
                if self._memo:
                    self._memo.put(name, content, reading)
            self._readings[module] = reading
        return self._readings[module]

    def changed(self) -> list[str]:
        """The files that were read and hold something else by now."""
        read = ((self.files[module], content) for module, content in self._contents.items())
        return [str(path.relative_to(self.root)) for path, content in read if path.read_bytes() != content]

    def _content(self, module: str) -> bytes:
        """The bytes of a module, read once: what is parsed, hashed and kept by its bytes must be one content, also
        where the file is saved meanwhile."""
        if module not in self._contents:
            self._contents[module] = self.files[module].read_bytes()
        return self._contents[module]

    def _imported(self, module: str) -> Iterator[str]:
        for node in running(self.tree(module)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    package = module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    source = ".".join([*parents, *([source] if source else [])])
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names)

    def _with_packages(self, name: str) -> Iterator[str]:
        """`a.b.c` as a, a.b and a.b.c, those that are modules of the project."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if (prefix := ".".join(parts[:end])) in self.files:
                yield prefix


def _names_a_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(MODULE_NAME.fullmatch(node.value))


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _data_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir():
            if not any(path.rglob("*.py")):
                yield from _data_files(path)
        elif path.suffix != ".py" and path.suffix not in NOT_CODE:
            yield path
