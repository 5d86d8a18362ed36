"""Says beforehand that kernels will be compiled (stages/compiled.py): nothing moves meanwhile, for up to a minute.

Apart from compiled.py, whose importers count as kernels: an edit of theirs would compile all kernels anew.
"""

from __future__ import annotations

from pathlib import Path

from stages import compiled
from stages.progress import say


def tell_first_compile(stage: str, folder: Path) -> None:
    """A line where this machine has no kernels of the stage's folder, or of stages/, as they are now."""
    if not all(
        (compiled.cache_folder() / compiled.source_digest(place)).is_dir() for place in (folder, compiled.SHARED)
    ):
        say(f"{stage}: compiles its kernels first, which takes up to a minute, once on this machine")
