"""Progress for people: a bar with rate and ETA on a terminal, one closing line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


def say(message: str) -> None:
    """One line for the log, printed at once and above any bar."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def progress(label: str, total: float | None, unit: str, scale: bool = False, note: str = "") -> Iterator[tqdm]:
    """A bar to be moved with `.update(n)`; `scale` prints 1.2M for 1,200,000.

    Without a terminal nothing moves, and one line at the end gives count, seconds and rate, and the note.
    """
    started = time.monotonic()
    quiet = not sys.stderr.isatty()
    bar = _CountingBar(total=total, desc=label, unit=f" {unit}", unit_scale=scale, disable=None, leave=not quiet)
    with bar:
        yield bar
    if quiet:
        seconds = time.monotonic() - started
        unit = unit.removesuffix("s") if bar.moved == 1 else unit
        say(f"{label}: {bar.moved:,.0f} {unit} in {seconds:.1f} s ({_rate(bar.moved, max(seconds, 1e-9))}){note}")


def _rate(moved: float, seconds: float) -> str:
    """1,234/s, 2.5/s, or 4.1 s each."""
    if 0 < moved < seconds:
        return f"{seconds / moved:.1f} s each"
    rate = moved / seconds
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


class _CountingBar(tqdm):
    """A bar that counts also while it is not shown."""

    moved = 0.0

    def update(self, n: float | None = 1) -> bool | None:
        self.moved += n or 0
        return super().update(n)
