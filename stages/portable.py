"""How a file below model/ may import the rest of the project, so that an export can take it along.

An export holds the files of model/ side by side and has neither `model` nor `stages` (stages/export/own_code.py).
transformers follows an import from one file to the next where it stands on a line of its own:

    from model.norm import RMSNorm      becomes `from .norm import RMSNorm`, and norm.py goes along
    from .norm import RMSNorm           as it is
    from model import norm              stays behind, as does everything of `stages`

Read from the syntax tree, so a line of a docstring that begins with `import model` is no import.
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


def left_behind(tree: ast.AST, source: bytes, is_ours: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Line and text of every import of the project that could not go with an export.

    Args:
        is_ours: whether a top-level name is a package of the project; other packages are installed by themselves.
    """
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module or ""]
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            names = [node.args[0].value]  # type: ignore[attr-defined]
        else:
            continue
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        if not relative and not any(is_ours(name.partition(".")[0]) for name in names):
            continue
        if followed(node) is None or lines[node.lineno - 1][: node.col_offset].strip():
            yield node.lineno, ast.unparse(node)


def _imports_by_name(node: ast.Call) -> bool:
    """Whether it is `importlib.import_module("..")` or `__import__("..")`."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    named = bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return named and function in ("import_module", "__import__")


def relative(code: str) -> str:
    """The code with every `from model.FILE import` made `from .FILE import`."""
    lines = code.encode().splitlines(keepends=True)
    for node in ast.walk(ast.parse(code)):
        if followed(node) and not node.level:  # type: ignore[attr-defined]
            lines[node.lineno - 1] = ABSOLUTE.sub(rb"\1.", lines[node.lineno - 1])  # type: ignore[attr-defined]
    return b"".join(lines).decode()
