"""The default corpus: the documentation of the standard library and of the pinned packages.

One document is one module page: the docstrings of a source file that have 200 characters or more, in
source order, each once. Example: numpy/linalg/_linalg.py gives one page of 90 KB whose id is that
path and whose source is `numpy`. A package's description from its METADATA is a page too. It is real
English with real near-duplicates, and it is on every machine without a network.

The corpus is pinned by constraints.txt, which also pins the installation. Packages are found through
their METADATA and never imported. Marks of reStructuredText are `restructured_text`'s work.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from stages.download.docstrings import docstrings_of
from stages.download.restructured_text import plain
from stages.errors import BadInput
from stages.progress import progress, say
from stages.workers import batches, ordered_map

MIN_CHARACTERS = 200
BATCH_BYTES = 2 << 20
STANDARD_LIBRARY = "stdlib"
TEST_FOLDERS = {"test", "tests", "idle_test", "idlelib", "turtledemo"}
TEST_FILE = re.compile(r"\A(test_.*|.*_test|conftest)\.py\Z")
PIN = re.compile(r"\A([A-Za-z0-9][\w.-]*)==([^\s;]+)\Z")


class Page(NamedTuple):
    """A source file to read, or a description that is already text."""

    id: str
    source: str
    path: str
    text: str = ""


def read_pins(path: Path) -> dict[str, str]:
    """The versions in constraints.txt by package.

    Raises:
        BadInput: no such file, or a line that is not `name==version`.
    """
    if not path.is_file():
        raise BadInput(f"{path.name}: not found; download.source python_docs reads its pins")
    pins = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        if not (pin := PIN.match(line)):
            raise BadInput(f"{path.name}:{number}: {line!r} is not a pin; write name==version")
        pins[pin.group(1)] = pin.group(2)
    return pins


def installed_packages(pins: dict[str, str], any_version: bool) -> dict[str, metadata.Distribution]:
    """The pinned packages as they are installed.

    Raises:
        BadInput: one is missing or has another version, unless `any_version`, which warns.
    """
    found = {}
    for name, pinned in sorted(pins.items()):
        try:
            distribution = metadata.distribution(name)
            problem = f"{name} {distribution.version} is installed, {pinned} is pinned"
        except metadata.PackageNotFoundError:
            distribution, problem = None, f"{name} is not installed, {pinned} is pinned"
        if distribution is None or distribution.version != pinned:
            if not any_version:
                raise BadInput(
                    f"constraints.txt: {problem}; run `make setup`, or set download.any_version: true "
                    "for a corpus of another version"
                )
            say(f"warning: {problem}; download.any_version takes what is there")
        if distribution is not None:
            found[name] = distribution
    return found


def package_versions(packages: dict[str, metadata.Distribution]) -> dict[str, str]:
    """What the manifest names: Python and every package."""
    versions = {name: distribution.version for name, distribution in packages.items()}
    return {"python": ".".join(map(str, sys.version_info[:3])), **versions}


def find_pages(packages: dict[str, metadata.Distribution]) -> list[Page]:
    """All pages in the order of the corpus: the standard library, then the packages by name."""
    pages = _library_pages(Path(sysconfig.get_path("stdlib")))
    for name, distribution in sorted(packages.items()):
        paths = [Path(str(file)) for file in distribution.files or []]
        modules = sorted(path.as_posix() for path in paths if path.suffix == ".py" and ".." not in path.parts)
        pages += [
            Page(module, name, str(distribution.locate_file(module)))
            for module in modules
            if not _is_test(Path(module))
        ]
        pages.append(Page(f"{name}/METADATA", name, "", _description(distribution)))
    return pages


def _library_pages(folder: Path) -> list[Page]:
    modules: list[Path] = []
    for name in sys.stdlib_module_names:
        if (folder / f"{name}.py").is_file():
            modules.append(folder / f"{name}.py")
        elif (folder / name).is_dir():
            modules += (folder / name).rglob("*.py")
    relative = sorted(path.relative_to(folder).as_posix() for path in modules)
    return [Page(module, STANDARD_LIBRARY, str(folder / module)) for module in relative if not _is_test(Path(module))]


def _is_test(module: Path) -> bool:
    return bool(TEST_FOLDERS.intersection(module.parts[:-1]) or TEST_FILE.match(module.name))


def _description(distribution: metadata.Distribution) -> str:
    """The package's README as its METADATA holds it; Markdown as it is, reStructuredText made plain."""
    message = distribution.metadata
    text = str(message.json.get("description", "")).strip("\n")
    is_markdown = "markdown" in str(message.json.get("description_content_type", ""))
    return text if is_markdown else plain(text)


def page_text(page: Page) -> str | None:
    """The text of a page: None if it has no long docstring, or is not valid Python of this version."""
    if not page.path:
        return page.text if len(page.text) >= MIN_CHARACTERS else None
    try:
        docstrings = list(docstrings_of(Path(page.path).read_bytes(), page.path))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None
    long_ones = dict.fromkeys(text for text in docstrings if len(text) >= MIN_CHARACTERS and _is_unicode(text))
    return "\n\n".join(plain(text).strip("\n") for text in long_ones) or None


def _is_unicode(text: str) -> bool:
    """False for a docstring with an escape such as a lone surrogate, which no encoding can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def page_texts(pages: list[Page]) -> list[str | None]:
    return [page_text(page) for page in pages]


def documents(pages: list[Page], n_workers: int) -> Iterator[dict[str, str]]:
    """Rows {id, text, source} in the order of `pages`."""
    groups = list(batches(pages, _file_size, BATCH_BYTES))
    with progress("download", len(pages), "modules") as bar:
        for group, texts in zip(groups, ordered_map(page_texts, groups, n_workers), strict=True):
            bar.update(len(group))
            for page, text in zip(group, texts, strict=True):
                if text:
                    yield {"id": page.id, "text": text, "source": page.source}


def _file_size(page: Page) -> int:
    return Path(page.path).stat().st_size if page.path and Path(page.path).is_file() else len(page.text)
