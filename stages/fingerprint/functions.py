"""One hash per function of a Python file, the same for any text that means the same.

The hash is taken of the syntax tree, written as text by a walk of our own. It leaves out positions,
comments, docstrings and every field that is empty, because those are what differs between two texts
of one meaning, and between the trees of Python 3.11, 3.12 and 3.13 (`ast.dump` gives another text on
each). Statements without effect go too: `pass`, a constant on its own line, `if TYPE_CHECKING:`.

    def double(x):          # hash 1          def double(x):     # hash 1 as well
        "Twice x."                                return x*2
        return x * 2

A file becomes `{"double": "ab12..", "Attention.forward": .., "Attention": .., "<module>": ..}`: the
functions, the class without its methods, and what is left of the module (its imports as a set, so
that sorting them changes nothing). A function within a function belongs to the outer one. Which files
a stage can reach is the work of imports.py.
"""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from stages.portable import for_type_checkers

HASH_LENGTH = 16
# `ctx` follows from the place of the node; `kind` is the u of u"text"; the others hold comments.
FIELDS_WITHOUT_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def function_hashes(tree: ast.Module) -> dict[str, str]:
    """The hash of every function, class and of the rest of the module, by qualified name.

    Names that are defined twice (a property and its setter) are hashed together, in their order.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    _split(tree.body, "", "<module>", parts)
    return {name: bytes_hash("\n".join(texts).encode()) for name, texts in sorted(parts.items())}


def bytes_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_LENGTH]


def _split(body: list[ast.stmt], prefix: str, owner: str, parts: dict[str, list[str]]) -> None:
    """Gives every function its own part, and what is left of `body` to the part `owner`."""
    imports: set[str] = set()
    rest: list[str] = []
    for statement in effective(body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            parts[prefix + statement.name].append(canonical(statement))
        elif isinstance(statement, ast.ClassDef):
            name = prefix + statement.name
            heading = [*statement.decorator_list, *statement.bases, *statement.keywords]
            heading += getattr(statement, "type_params", [])
            parts[name].append(f"class {_sequence(heading)}")
            _split(statement.body, f"{name}.", name, parts)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            imports.update(_imported(statement))
        else:
            rest.append(canonical(statement))
    if imports or rest:
        parts[owner].append("\n".join([*sorted(imports), *rest]))


def _imported(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    source = f"{'.' * statement.level}{statement.module or ''}" if isinstance(statement, ast.ImportFrom) else ""
    for alias in statement.names:
        yield f"import {source}:{alias.name} as {alias.asname or alias.name}"


def effective(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that do something when they are run."""
    for statement in body:
        if isinstance(statement, ast.Pass):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If) and for_type_checkers(statement):
            yield from effective(statement.orelse)
            continue
        yield statement


def canonical(node: object) -> str:
    """A syntax tree as text: `Name(id='x')`, fields by name, without what carries no meaning."""
    if isinstance(node, ast.Constant):
        # ascii, because repr escapes what is unprintable in the Unicode version of this Python
        return f"{type(node.value).__name__} {node.value!a}"
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({_sequence(_merged(node.values))})"
    if isinstance(node, ast.AST):
        fields = []
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if isinstance(value, list) and all(isinstance(item, ast.stmt) for item in value):
                value = list(effective(value))
            if value is None or value == [] or name in FIELDS_WITHOUT_MEANING:
                continue
            fields.append(f"{name}={_sequence(value) if isinstance(value, list) else canonical(value)}")
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"{node!a}"


def _sequence(nodes: Iterable[object]) -> str:
    return f"[{', '.join(canonical(node) for node in nodes)}]"


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """The pieces of an f-string with neighbouring texts joined: parsers cut them differently."""
    merged: list[ast.expr] = []
    for value in values:
        last = merged[-1] if merged else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(value=str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            merged.append(value)
    return merged
