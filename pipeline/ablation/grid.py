"""Which experiments an ablation is made of: every combination of the values, each with every seed.

    model.post_norm=true,false model.qk_norm=true,false --seeds 3

is four variants. The baseline is the one that params.yaml has, or one that is named; it comes first, and is added
where the grid does not hold it. Each variant trains with seeds 0, 1, 2 (from train.seed on), and the baseline once
more with 3, 4, 5: the control, which shows how far equal things lie apart. 4 x 3 + 3 = 15 experiments.

A comma separates values; within brackets, braces and quotes it is part of a value. `+` joins the layers of a pattern:

    model.layer_pattern=full,swa*2+mla*1      two values
    clean.languages=[en,fr],[en]              two values
    "evaluate.prompts=['a, b'],['c']"         two values, in quotes for the shell
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import BadInput

SEED = "train.seed"
CLOSING = {"[": "]", "{": "}", "(": ")"}
PLAIN = re.compile(r"[A-Za-z_][\w.*+/-]*")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One combination of values.

    Attributes:
        settings: param to value, such as {"model.post_norm": True}; empty for params.yaml as it is.
        control: the baseline once more, with other seeds.
    """

    settings: Mapping[str, Any]
    control: bool = False

    @property
    def label(self) -> str:
        said = ", ".join(f"{name}={shown(value)}" for name, value in self.settings.items()) or "params.yaml"
        return f"{said} (other seeds)" if self.control else said


@dataclasses.dataclass(frozen=True)
class Planned:
    """One experiment: a variant with a seed, and the name that DVC gets for it."""

    name: str
    variant: Variant
    seed: int

    @property
    def overrides(self) -> list[str]:
        """What `dvc exp run -S` is given."""
        values = {**self.variant.settings, SEED: self.seed}
        return [f"{name}={for_dvc(value)}" for name, value in values.items()]


def parse(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["model.post_norm=true,false"]` as `{"model.post_norm": [True, False]}`."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not re.fullmatch(r"\w+\.[\w.]+", name):
            raise BadInput(f"{text}: must read section.key=value,value, such as model.post_norm=true,false")
        if name == SEED:
            raise BadInput(f"{text}: seeds are the repetitions of an ablation; say --seeds 3")
        if name in found:
            raise BadInput(f"{name} is given twice; put all its values after one =")
        if name.startswith("execution."):
            raise BadInput(f"{text}: execution changes no result, so there is nothing to compare")
        try:
            found[name] = [YAML(typ="safe").load(value) for value in split(values)]
        except YAMLError:
            raise BadInput(f"{text}: not valid YAML after =; quote a text as you would in params.yaml") from None
        if len({json.dumps(value) for value in found[name]}) < len(found[name]):
            raise BadInput(f"{text}: has the same value twice")
    return found


def split(text: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    part = ""
    waiting: list[str] = []
    for letter in text:
        if waiting and waiting[-1] == letter:
            waiting.pop()
        elif letter in "\"'" and not (waiting and waiting[-1] in "\"'"):
            waiting.append(letter)
        elif letter in CLOSING and not (waiting and waiting[-1] in "\"'"):
            waiting.append(CLOSING[letter])
        elif letter == "," and not waiting:
            yield part
            part = ""
            continue
        part += letter
    yield part


def variants(grid: Mapping[str, Sequence[Any]], params: Mapping[str, Any], baseline: Sequence[str]) -> list[Variant]:
    """All combinations, the baseline first.

    Args:
        params: of params.yaml, by section.
        baseline: settings of the baseline; of params.yaml where it has none.
    """
    chosen = {name: values[0] for name, values in parse(baseline).items()}
    if unknown := chosen.keys() - grid.keys():
        raise BadInput(f"--baseline {min(unknown)}: not varied here; varied are {', '.join(grid)}")
    base = Variant({name: chosen.get(name, value_in(params, name)) for name in grid})
    every = [Variant(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    return [base, *(variant for variant in every if variant.settings != base.settings)]


def value_in(params: Mapping[str, Any], dotted: str) -> Any:
    node: Any = params
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            known = [f"{name}.{key}" for name, keys in params.items() if isinstance(keys, Mapping) for key in keys]
            near = difflib.get_close_matches(dotted, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "write its line there first, with the value of the baseline"
            raise BadInput(f"{dotted}: not in params.yaml; {hint}")
        node = node[key]
    return node


def planned(every: Sequence[Variant], seeds: int, first_seed: int, state: str) -> list[Planned]:
    """The experiments, seed by seed so that all variants have their first early; the control's come last.

    Args:
        every: the variants, the baseline first.
        state: names the commit and the changes that are not in it; other states are other experiments.
    """
    control = Variant(every[0].settings, control=True)
    jobs = [(variant, first_seed + number) for number in range(seeds) for variant in every]
    jobs += [(control, first_seed + seeds + number) for number in range(seeds)]
    return [Planned(name_of(variant, seed, state), variant, seed) for variant, seed in jobs]


def name_of(variant: Variant, seed: int, state: str) -> str:
    """A name for `dvc exp show` that follows from values, seed and state: `post-norm-true-s0-3f2a91c`."""
    described = json.dumps([dict(variant.settings), seed, state], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode()).hexdigest()[:7]
    said = "-".join(f"{name.split('.')[-1]}-{shown(value)}" for name, value in variant.settings.items())
    plain = re.sub(r"[^A-Za-z0-9]+", "-", said).strip("-").lower()[:40].strip("-")
    return f"{plain}-s{seed}-{digest}"


def shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def for_dvc(value: Any) -> str:
    """A value in the grammar of `dvc exp run -S`, which is Hydra's: texts in quotes, where `*`, `,` and `+` are
    plain letters."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null", "nan", "inf"):
            return value
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(for_dvc(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{for_dvc(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
