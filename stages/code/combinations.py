"""Params that are fine alone and impossible together, found before any work.

Each check reads the sections and yields the key to blame with the problem. What one section can
judge alone stands in its schema.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.config import ATTENTIONS, MLPS, NORMS
from stages.first_weights import Problem, has_begun, problem_of_first_weights
from stages.params import ParamsFile


def check_combinations(params: ParamsFile, sections: Mapping[str, Any]) -> None:
    """Runs every check.

    Raises:
        BadInput: the first impossible combination, with its line and the mend.
    """
    by_section = (check(sections) for check in CHECKS)
    for keys, problem in itertools.chain(*by_section, initial_weights(sections, params.path.parent)):
        raise params.fail(keys, problem)


def whole_rows(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """A step trains whole rows of pack.context_length tokens, at least one a process."""
    tokens, context = sections["train"].batch_tokens, sections["pack"].context_length
    processes = sections["execution"].n_processes
    keys = ["train", "batch_tokens"]
    if tokens % context:
        below, above = tokens // context * context, (tokens // context + 1) * context
        nearest = f"{below} or {above}" if below else f"{above}"
        yield keys, f"{tokens} is no multiple of pack.context_length {context}; the nearest are {nearest}"
    elif tokens // context < processes:
        problem = (
            f"{tokens} tokens are {tokens // context} rows of pack.context_length {context}, fewer than "
            f"execution.n_processes {processes}; use {processes * context} or more, or fewer processes"
        )
        yield keys, problem


def built_in_parts(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Norms, MLPs and attentions are built in, or stand below model/ (which stages/code/parts.py looks up)."""
    model = sections["model"]
    named = {"norm": ((model.norm,), NORMS), "mlp": ((model.mlp,), MLPS), "layer_pattern": (model.kinds, ATTENTIONS)}
    for key, (names, known) in named.items():
        for name in names:
            if name not in known and not name.startswith("model."):
                near = difflib.get_close_matches(name.lower(), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                yield ["model", key], f"{name!r} is unknown; {hint} A class of yours is named model.FILE.CLASS"


def initial_weights(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """The folder of first weights is whole, of this architecture, and the one that `init_sha256` means; where a
    training has begun from them, nobody needs it any more."""
    model, execution = sections["model"], sections["execution"]
    if model.init_sha256 and has_begun(model, execution, root):
        return
    if found := problem_of_first_weights(model, execution, root):
        yield found


CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (whole_rows, built_in_parts)
