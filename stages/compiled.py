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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from numba.np import linalg

SHARED = Path(__file__).parent
USES = b"stages.compiled import"


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
    """A hash of the files of kernels in this folder and in stages/."""
    sources = {path: path.read_bytes() for place in {folder, SHARED} for path in place.glob("*.py")}
    digest = hashlib.sha256()
    for path, source in sorted(sources.items()):
        if USES in source:
            digest.update(path.name.encode() + b"\0" + source + b"\0")
    return digest.hexdigest()[:32]


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
bare_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # type: ignore[call-overload]
"""The same for functions that make no arrays: nothing counts references, which takes half of the time of small ones."""
inline_kernel = numba.njit(cache=True, inline="always", error_model="numpy")
"""The same, copied into each kernel that calls it."""

inner_kernel = numba.njit(  # type: ignore[call-overload]
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""For kernels that only kernels call: without what Python would call them by, they compile in half the time."""
