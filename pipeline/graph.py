"""The graph as dvc.yaml has it: stages, their files, and the edges between them.

An edge runs from A to B where a dependency of B is an output of A, lies within one, or holds one:
`clean` writes data/clean/documents, `dedup` reads data/clean/documents, so dedup waits for clean.
DVC itself decides what has to run; this reading only orders the work and says what hangs on what.
Templates other than `${section.key}` of params.yaml, `foreach`, `matrix`, `wdir` and `vars` are not used
here and are refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import BadInput
from stages.params import ParamsFile

TEMPLATE = re.compile(r"\$\{([^}]*)\}")
REFUSED = ("foreach", "matrix", "wdir", "vars")


@dataclasses.dataclass(frozen=True)
class Plot:
    """A CSV file with a curve: the names of its columns."""

    path: str
    x: str
    y: str
    title: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage. Paths are as in dvc.yaml, with the templates filled in."""

    name: str
    description: str = ""
    command: str = ""
    deps: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()  # metrics and plots included
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    gpu: bool = False  # runs on a GPU where there is one: `meta: {gpu: true}`


class Graph:
    """The stages in an order in which they can run, and what each waits for.

    Attributes:
        stages: by name, every stage after the stages it waits for.
        upstream: the stages whose outputs a stage reads, by its name.
    """

    def __init__(self, stages: Iterable[Stage]):
        by_name = {stage.name: stage for stage in stages}
        self.upstream = {name: _upstream(stage, by_name.values()) for name, stage in by_name.items()}
        try:
            order = list(TopologicalSorter(self.upstream).static_order())
        except CycleError as error:
            raise BadInput(f"dvc.yaml: the stages wait for each other: {' -> '.join(error.args[1])}") from None
        self.stages = {name: by_name[name] for name in order}

    def select(self, targets: Iterable[str], only: bool = False) -> list[str]:
        """The stages to run for `targets`, in order; for none, all.

        With `only` these are the targets and `code`, which must judge params and code before any stage
        is taken for unchanged; without, also everything that they wait for.

        Raises:
            BadInput: a target that is no stage, with the nearest name.
        """
        targets = list(targets)
        for target in targets:
            if target not in self.stages:
                close = difflib.get_close_matches(target, self.stages, n=1)
                hint = f"did you mean {close[0]}?" if close else f"stages are {', '.join(self.stages)}"
                raise BadInput(f"{target}: no stage of dvc.yaml; {hint}")
        if only and not targets:
            raise BadInput("--only needs the name of a stage: millrace run train --only")
        if not targets:
            return list(self.stages)
        wanted = {*targets, *({"code"} & self.stages.keys())}
        waiting = list(targets)
        while waiting and not only:
            upstream = self.upstream[waiting.pop()] - wanted
            wanted |= upstream
            waiting += upstream
        return [name for name in self.stages if name in wanted]

    def made(self, name: str) -> tuple[str, ...]:
        """Those dependencies of a stage that other stages make."""
        outs = [out for other in self.upstream[name] for out in self.stages[other].outs]
        return tuple(dep for dep in self.stages[name].deps if any(_overlap(dep, out) for out in outs))

    def downstream(self, name: str) -> list[str]:
        """The stages that need `name`, directly or through others."""
        found = {name}
        for stage in self.stages:
            if self.upstream[stage] & found:
                found.add(stage)
        return [stage for stage in self.stages if stage in found - {name}]


def read_graph(root: Path) -> Graph:
    """The graph of root/dvc.yaml.

    Raises:
        BadInput: the file is missing, is not valid, or uses what this reading does not know.
    """
    path = root / "dvc.yaml"
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        entries = content["stages"].items()
    except FileNotFoundError:
        raise BadInput(f"{path}: not found; run this in the root of the repository") from None
    except (YAMLError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"dvc.yaml: not a valid graph ({reason}); `dvc stage list` tells more") from None
    return Graph(_stage(name, entry, root) for name, entry in entries)


def _stage(name: str, entry: Mapping[str, Any], root: Path) -> Stage:
    for key in REFUSED:
        if key in entry:
            raise BadInput(f"dvc.yaml: stages.{name}.{key}: not known to `millrace run`; run `dvc repro` instead")

    def paths(*keys: str) -> tuple[str, ...]:
        listed = [item for key in keys for item in entry.get(key, [])]
        named = [str(next(iter(item)) if isinstance(item, Mapping) else item) for item in listed]
        return tuple(TEMPLATE.sub(lambda found: _param(found[1], name, root), path) for path in named)

    return Stage(
        name,
        description=entry.get("desc", ""),
        command=entry.get("cmd", ""),
        deps=paths("deps"),
        outs=paths("outs", "metrics", "plots"),
        metrics=paths("metrics"),
        params=paths("params"),
        plots=tuple(_plots(entry.get("plots", []))),
        gpu=bool((entry.get("meta") or {}).get("gpu", False)),
    )


def _plots(entries: Iterable[Any]) -> Iterator[Plot]:
    for item in entries:
        if isinstance(item, Mapping):
            path, settings = next(iter(item.items()))
            if {"x", "y"} <= set(settings):
                yield Plot(str(path), settings["x"], settings["y"], settings.get("title", str(path)))


def _param(dotted: str, stage: str, root: Path) -> str:
    """The value of `${dotted}`, from params.yaml."""
    node: Any = plain_params(root)
    for key in dotted.strip().split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise BadInput(f"dvc.yaml: stages.{stage}: ${{{dotted}}} is not a key of params.yaml")
        node = node[key]
    return str(node)


def plain_params(root: Path) -> dict[str, Any]:
    """The values of params.yaml without their lines, which takes a tenth of the time of `ParamsFile`.

    Raises:
        BadInput: the file is missing or is no YAML; with its line.
    """
    path = root / "params.yaml"
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return ParamsFile(path).values
    return values if isinstance(values, dict) else {}


def _upstream(stage: Stage, stages: Iterable[Stage]) -> set[str]:
    return {
        other.name
        for other in stages
        if other.name != stage.name and any(_overlap(dep, out) for dep in stage.deps for out in other.outs)
    }


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other, lies within it, or holds it."""
    left, right = PurePosixPath(one), PurePosixPath(other)
    return left.is_relative_to(right) or right.is_relative_to(left)
