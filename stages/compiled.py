"""`kernel` compiles a function of numbers and arrays to machine code, once on a machine.

numba's own cache forgets nothing when a function in another file changes that this one calls, and
starts anew in every copy of a repository, so also in each queued experiment. Here a compiled function
is found by the content of its file and of the kernels beside and above it:

    ~/.cache/millrace/kernels/3f9a0c../decode-12.py311.nbi

Kernels compute with integers, or with floats in one fixed order, on one thread: processes are what runs
side by side (stages/workers.py), so the result has the same bits on any number of cores.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from numba.np import linalg

SHARED = Path(__file__).parent
USES = b"stages.compiled import"
IMPORT = re.compile(r"^from (stages[.\w]*) import (.*)$", re.MULTILINE)


class Locator(caching._CacheLocator):
    """Tells numba where a compiled function lies, and what it was made from."""

    def __init__(self, function: Callable[..., Any], path: str):
        self._py_file = path
        self._name = f"{function.__module__}-{function.__code__.co_firstlineno}"
        self._folder = cache_folder() / source_digest(Path(path).parent)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._folder.name

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> Locator | None:
        return cls(function, path) if Path(path).is_file() else None


@functools.lru_cache
def source_digest(folder: Path) -> str:
    """A hash of the files of kernels in this folder and in stages/, and of those that they import names from: a kernel
    holds the constants that it reads."""
    kernels = {path for place in (folder, SHARED) for path in place.glob("*.py") if USES in path.read_bytes()}
    imported = {SHARED.parent / module for path in kernels for module in imported_modules(path.read_text("utf-8"))}
    digest = hashlib.sha256()
    for path in sorted(kernels | {path for path in imported if path.is_file()}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def imported_modules(source: str) -> Iterator[str]:
    """Files of our own that a module imports at its top: `from stages.clean import rules` is stages/clean/rules.py, and
    `from stages.clean.rules import RULES` is so too."""
    for module, names in IMPORT.findall(source):
        folder = module.replace(".", "/")
        yield f"{folder}.py"
        yield from (f"{folder}/{name.strip()}.py" for name in names.split(","))


@functools.lru_cache
def cache_folder() -> Path:
    """A folder of the user's that can be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "millrace" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"millrace-{os.getuid()}" / "kernels"
    return folder


def _no_blas() -> None:
    raise ImportError("kernels multiply no matrices")


linalg.ensure_blas = _no_blas  # else the first kernel of a process imports scipy, for a third of a second
numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{Locator.__name__}"  # type: ignore[attr-defined]
kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
sum_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
"""The same with sums in any order, which vectors need: equal bits on equal processors alone, so not for data."""
bare_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""The same for functions that make no arrays: nothing counts references, which takes half of the time of small ones."""
inline_kernel = numba.njit(cache=True, inline="always", error_model="numpy")
"""The same, copied into each kernel that calls it."""

inner_kernel = numba.njit(  # type: ignore[call-overload]
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""For kernels that only kernels call: without what Python would call them by, they compile in half the time."""
