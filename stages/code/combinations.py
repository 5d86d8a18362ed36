"""Params that are fine alone and impossible together, found before any work.

Each check reads the sections and yields the key to blame with the problem. What one section can
judge alone stands in its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stages.huggingface import refuse_unsupported
from stages.params import ParamsFile

Problem = tuple[list[str], str]


def check_combinations(params: ParamsFile, sections: Mapping[str, Any]) -> None:
    """Runs every check.

    Raises:
        BadInput: the first impossible combination, with its line and the mend.
    """
    for check in CHECKS:
        for keys, problem in check(sections):
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


def exportable(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """The decoder has a twin in transformers, so that the last stage does not refuse what the first began."""
    if reason := refuse_unsupported(sections["model"]):
        yield ["model"], reason


CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (whole_rows, exportable)
