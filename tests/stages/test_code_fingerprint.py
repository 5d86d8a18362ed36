"""What changes a fingerprint and what does not, and which files a stage can reach."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from stages.code.stage import fingerprint
from stages.errors import BadInput
from stages.fingerprint.functions import function_hashes
from stages.fingerprint.imports import Project

SOURCE = '''
"""Packs rows."""
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Row

SIZE: int = 8

@decorated(1)
def pack(rows, *, size: int = SIZE) -> list["Row"]:
    """Puts rows together."""
    # the longest first
    for row in sorted(rows, key=len)[::-1]:
        if len(row) <= size:
            yield f"{row!r:>{size}} {row}" f" of {size}" "\\N{EM DASH}é"
        else:
            pass

class Shard(dict):
    "A file."
    suffix = ".arrow"

    @property
    def name(self):
        return self["name"] + self.suffix

    @name.setter
    def name(self, value):
        match value:
            case {"name": str(name), **rest} if rest:
                self["name"] = name
            case _:
                raise ValueError(value) from None

    def empty(self):
        "Nothing to do."
'''

# The same on every Python: this is what keeps fingerprints stable between 3.11, 3.12 and 3.13.
GOLDEN = {
    "<module>": "efba0c49218db8d1",
    "Shard": "4fc39035fc0efe14",
    "Shard.empty": "784e665c1bb7204c",
    "Shard.name": "e81eb6ca708b0010",
    "pack": "6e47610a432655b7",
}


def hashes(source: str) -> dict[str, str]:
    return function_hashes(ast.parse(textwrap.dedent(source)))


def changed(edited: str, source: str = SOURCE) -> set[str]:
    before, after = hashes(source), hashes(edited)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_hashes_are_the_same_on_every_python() -> None:
    assert hashes(SOURCE) == GOLDEN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # the longest first\n", ""),
        ('"""Puts rows together."""', '"""Puts short rows together, in order."""'),
        ('    """Puts rows together."""\n', ""),
        ('    "A file."\n', ""),
        ('"""Packs rows."""', '"""Packs."""'),
        ("        else:\n            pass\n", ""),
        ("sorted(rows, key=len)[::-1]", "sorted(\n        rows,\n        key=len,\n    )[::-1]"),
        ('" of {size}" "', '" of {size}'),
        ('".arrow"', "'.arrow'"),
        ('        "Nothing to do."\n', "        pass\n"),
        ("    from nowhere import Row\n", "    from elsewhere import Row, Table\n"),
        ("import math\nfrom typing import TYPE_CHECKING\n", "from typing import TYPE_CHECKING\nimport math\n"),
        ("SIZE: int = 8\n", "SIZE: int = 8\n\n\n\n"),
    ],
)
def test_what_means_the_same_has_the_same_hashes(old: str, new: str) -> None:
    assert old in SOURCE
    assert changed(SOURCE.replace(old, new)) == set()


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("<= size", "< size", {"pack"}),
        ("@decorated(1)", "@decorated(2)", {"pack"}),
        ("size: int = SIZE", "size: int = 9", {"pack"}),
        (" of {size}", " off {size}", {"pack"}),
        ("{row!r:>", "{row!s:>", {"pack"}),
        ("def pack", "async def pack", {"pack"}),
        ("def pack", "def packed", {"pack", "packed"}),
        ("SIZE: int = 8", "SIZE: int = 16", {"<module>"}),
        ("import math", "import cmath", {"<module>"}),
        ("import math", "import cmath as math", {"<module>"}),
        ("class Shard(dict)", "class Shard(list)", {"Shard"}),
        ('".arrow"', '".parquet"', {"Shard"}),
        ("+ self.suffix", "", {"Shard.name"}),
        ('raise ValueError(value)', 'raise KeyError(value)', {"Shard.name"}),
        ('        "Nothing to do."\n', "        self.clear()\n", {"Shard.empty"}),
    ],
)  # fmt: skip
def test_what_means_another_thing_changes_its_own_hash_alone(old: str, new: str, names: set[str]) -> None:
    assert old in SOURCE
    assert changed(SOURCE.replace(old, new)) == names


def test_an_integer_a_float_and_a_truth_are_not_the_same() -> None:
    assert len({hashes(f"x = {value}")["<module>"] for value in ("1", "1.0", "True", "'1'", "b'1'", "1j")}) == 6


def write_project(root: Path, files: dict[str, str]) -> Project:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    for folder in {path.parent for path in root.rglob("*.py")}:
        (folder / "__init__.py").touch()
    return Project(root)


def reached(root: Path, main: str, **others: str) -> set[str]:
    """The modules that stages/a/__main__.py reaches, but for itself and the packages."""
    names = ("stages/b.py", "stages/c.py", "stages/a/d.py", "model/e.py")
    files = {name: others.get(Path(name).stem, "") for name in names}
    project = write_project(root, {**files, "stages/a/__main__.py": main})
    found = project.reachable("stages.a.__main__", frozenset({"stages.c"} if "skip" in others else ()))
    return {name for name in found if name.rsplit(".")[-1] in "bcde"}


@pytest.mark.parametrize(
    "main",
    [
        "import stages.b",
        "import stages.b as other, os",
        "from stages import b",
        "from stages.b import something",
        "from stages.b import *",
        "from .. import b",
        "from ..b import something",
        "def later():\n    from stages import b",
        "if x:\n    import stages.b",
        "if TYPE_CHECKING:\n    import model.e\nelse:\n    import stages.b",
        "importlib.import_module('stages.b')",
        "command = ['-m', 'stages.b']",
    ],
)
def test_every_kind_of_import_is_followed(tmp_path: Path, main: str) -> None:
    assert reached(tmp_path, main) == {"stages.b"}


def test_imports_are_followed_through_others_and_through_packages(tmp_path: Path) -> None:
    assert reached(tmp_path, "from . import d", d="from stages import b", b="def f():\n    import model.e") == {
        "stages.a.d",
        "stages.b",
        "model.e",
    }
    (tmp_path / "stages" / "a" / "__init__.py").write_text("import stages.c")
    assert "stages.c" in Project(tmp_path).reachable("stages.a.__main__", frozenset())


def test_what_only_type_checkers_read_and_what_is_left_out_is_not_followed(tmp_path: Path) -> None:
    assert reached(tmp_path, "if typing.TYPE_CHECKING:\n    import stages.b") == set()
    assert reached(tmp_path, "import stages.c", c="import stages.b", skip="") == set()
    assert reached(tmp_path, "'stages.b is the module'") == set()


def test_a_file_that_is_no_python_is_named_with_its_line(tmp_path: Path) -> None:
    project = write_project(tmp_path, {"stages/a/__main__.py": "x = 1\ndef f(:\n"})
    with pytest.raises(BadInput, match=r"^stages/a/__main__.py:2: not valid Python: "):
        fingerprint(project, "a")


def test_a_template_beside_the_code_is_part_of_it(tmp_path: Path) -> None:
    files = {"stages/a/__main__.py": "", "stages/b/__main__.py": ""}
    write_project(tmp_path, files)
    template = tmp_path / "stages" / "a" / "templates" / "card.md"
    template.parent.mkdir()
    template.write_text("one")
    before = {name: fingerprint(Project(tmp_path), name) for name in "ab"}
    template.write_text("two")
    after = {name: fingerprint(Project(tmp_path), name) for name in "ab"}
    assert before["a"] != after["a"] and before["b"] == after["b"]
    assert list(after["a"]["modules"]) == ["stages/a/templates/card.md"]
