"""Which attention each layer has, written short: `swa*2,mla*1` is swa, swa, mla, and again from the start.

`swa*2+mla*1` is the same: `dvc exp run -S` takes a bare comma for a sweep over several values.

A name is `full`, `swa` (sliding window with sinks), `mla` (latent attention), or a class of one's own
by its module, such as `model.average.AverageAttention` (docs/model.md shows one in ten lines).
"""

from __future__ import annotations

import itertools
import re

TERM = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?:\s*\*\s*(?P<count>[1-9]\d*))?")


MOST_LAYERS = 10_000  # beyond any model; a slip of the keyboard is refused before it takes all memory


def cycle(pattern: str) -> tuple[str, ...]:
    """The kinds that a pattern names, once. Example: cycle("swa*2,mla") == ("swa", "swa", "mla").

    Raises:
        ValueError: the pattern is not a list of names with counts.
    """
    kinds: list[str] = []
    for term in re.split(r"[,+]", pattern):
        match = TERM.fullmatch(term.strip())
        if match is None:
            raise ValueError(f"layer_pattern {pattern!r}: {term.strip()!r} is no name with a count, such as swa*2")
        count = match["count"] or "1"
        if len(count) > len(str(MOST_LAYERS)) or len(kinds) + int(count) > MOST_LAYERS:
            raise ValueError(f"layer_pattern {pattern!r} names more than {MOST_LAYERS} layers; name fewer")
        kinds += [match["name"]] * int(count)
    return tuple(kinds)


def expand(pattern: str, n_layers: int) -> tuple[str, ...]:
    """The kind of every layer. Example: expand("swa*2,mla", 4) == ("swa", "swa", "mla", "swa").

    Raises:
        ValueError: the pattern is not a list of names with counts, or is longer than the model.
    """
    kinds = cycle(pattern)
    if len(kinds) > n_layers:
        raise ValueError(
            f"layer_pattern {pattern!r} names {len(kinds)} layers, the model has {n_layers}; set n_layers to "
            f"{len(kinds)} or more, or name fewer"
        )
    return tuple(itertools.islice(itertools.cycle(kinds), n_layers))
