"""Which attention each layer has, written short: `swa*2,mla*1` is swa, swa, mla, and again from the start.

`swa*2+mla*1` is the same: `dvc exp run -S` takes a bare comma for a sweep over several values.

A name is `full`, `swa` (sliding window with sinks), `mla` (latent attention), or a class of one's own
by its module, such as `model.average.AverageAttention` (docs/model.md shows one in ten lines).
"""

from __future__ import annotations

import itertools
import re

TERM = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:\*(?P<count>[1-9]\d*))?")


def expand(pattern: str, n_layers: int) -> tuple[str, ...]:
    """The kind of every layer. Example: expand("swa*2,mla", 4) == ("swa", "swa", "mla", "swa").

    Raises:
        ValueError: the pattern is not a list of names with counts, or is longer than the model.
    """
    cycle: list[str] = []
    for term in re.split(r"[,+]", pattern):
        match = TERM.fullmatch(term.strip())
        if match is None:
            raise ValueError(f"layer_pattern {pattern!r}: {term.strip()!r} is no name with a count, such as swa*2")
        cycle += [match["name"]] * int(match["count"] or 1)
    if len(cycle) > n_layers:
        raise ValueError(f"layer_pattern {pattern!r} names {len(cycle)} layers, the model has {n_layers}")
    return tuple(itertools.islice(itertools.cycle(cycle), n_layers))
