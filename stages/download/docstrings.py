"""Reads the docstrings of a Python source file without importing it.

The file is compiled, not run. A function keeps its docstring as its first constant; a module or a
class body stores it under the name `__doc__`, so that a long string which merely comes first is not
mistaken for one. Nested code objects are constants too, in source order:

    code of "def f():\n    'Adds.'"  ->  co_consts = (<code f>, ...);  <code f>.co_consts[0] = 'Adds.'

This costs a third of parsing with `ast`, which is the oracle in the tests. What a page looks like is
`python_docs`' work, marks of reStructuredText are `restructured_text`'s.
"""

from __future__ import annotations

import dis
import inspect
import sys
import warnings
from collections.abc import Iterator
from types import CodeType

LOAD_CONST, STORE_NAME = dis.opmap["LOAD_CONST"], dis.opmap["STORE_NAME"]
HAS_DOCSTRING = 0x4000000  # the flag of a function's code from Python 3.14 on; before, constant 0 is it or None
PROLOGUE_BYTES = 64  # a module or class stores its docstring within its first instructions


def docstrings_of(source: bytes, file_name: str) -> Iterator[str]:
    """The docstrings of module, classes, functions and methods in source order, indentation removed.

    Raises:
        SyntaxError, ValueError: the file is not valid Python of the running version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, file_name, "exec", dont_inherit=True, optimize=0)
    for docstring in _walk(code):
        yield inspect.cleandoc(docstring)


def _walk(code: CodeType) -> Iterator[str]:
    docstring = _of_function(code) if code.co_flags & inspect.CO_OPTIMIZED else _of_body(code)
    if docstring:
        yield docstring
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _walk(constant)


def _of_function(code: CodeType) -> str | None:
    if code.co_name.startswith("<") or not code.co_consts:
        return None
    if sys.version_info >= (3, 14) and not code.co_flags & HAS_DOCSTRING:
        return None
    return code.co_consts[0] if isinstance(code.co_consts[0], str) else None


def _of_body(code: CodeType) -> str | None:
    """The constant that a module or class body stores as `__doc__` at its start."""
    if "__doc__" not in code.co_names:
        return None
    name_index = code.co_names.index("__doc__")
    instructions = code.co_code[:PROLOGUE_BYTES]
    for at in range(0, len(instructions) - 3, 2):
        operation, constant, following, name = instructions[at : at + 4]
        if operation == LOAD_CONST and following == STORE_NAME and name == name_index:
            value = code.co_consts[constant]
            return value if isinstance(value, str) else None
    return None
