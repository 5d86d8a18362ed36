"""How a file below model/ may import the rest of the project, so that an export can take it along.

An export holds the files of model/ side by side and has neither `model` nor `stages` (stages/export/own_code.py).
transformers follows an import from one file to the next where it stands on a line of its own:

    from model.norm import RMSNorm      becomes `from .norm import RMSNorm`, and norm.py goes along
    from .norm import RMSNorm           as it is
    from model import norm              stays behind, as does everything of `stages`

Read from the syntax tree, so a line of a docstring that begins with `import model` is no import. What stands below
`if TYPE_CHECKING:` never runs and may import anything. A module that is imported by a computed name is not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

ABSOLUTE = re.compile(rb"^(\s*from\s+)model\.")
FILE_OF_MODEL = re.compile(r"model\.(\w+)")


def followed(node: ast.AST) -> str | None:
    """FILE of `from model.FILE import NAME` or `from .FILE import NAME`, else None."""
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return None
    if node.level == 1:
        return node.module if "." not in node.module else None
    found = FILE_OF_MODEL.fullmatch(node.module) if node.level == 0 else None
    return found[1] if found else None


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node of a tree but those that only type checkers read."""
    yield node
    children = node.orelse if isinstance(node, ast.If) and for_type_checkers(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from running(child)


def for_type_checkers(statement: ast.If) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose body never runs."""
    test = statement.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def left_behind(tree: ast.AST, source: bytes, is_ours: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Line and text of every import of the project that could not go with an export.

    Args:
        is_ours: whether a top-level name is a package of the project; other packages are installed by themselves.
    """
    lines = source.splitlines()
    importers = _importers(tree)
    for node in running(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Call) and _name(node.func) in importers:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            names = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        else:
            continue
        if not any(name.startswith(".") or is_ours(name.partition(".")[0]) for name in names):
            continue
        if followed(node) is None or lines[node.lineno - 1][: node.col_offset].strip():
            yield node.lineno, ast.unparse(node)


def _importers(tree: ast.AST) -> set[str]:
    """The names under which this file has importlib.import_module and __import__."""
    names = {"import_module", "__import__"}
    for node in running(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "importlib":
            names |= {alias.asname for alias in node.names if alias.asname and alias.name in names}
        elif isinstance(node, ast.Assign) and _name(node.value) in names:
            names |= {_name(target) for target in node.targets}
    return names


def _name(node: ast.AST) -> str:
    """`load` of `load` and of `tools.load`, else nothing."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def relative(code: str) -> str:
    """The code with every `from model.FILE import` made `from .FILE import`."""
    lines = code.encode().splitlines(keepends=True)
    for node in ast.walk(ast.parse(code)):
        if followed(node) and not node.level:  # type: ignore[attr-defined]
            lines[node.lineno - 1] = ABSOLUTE.sub(rb"\1.", lines[node.lineno - 1])  # type: ignore[attr-defined]
    return b"".join(lines).decode()
