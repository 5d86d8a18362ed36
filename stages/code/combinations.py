"""Params that are fine alone and impossible together, found before any work.

Each check reads the sections and yields the key to blame with the problem. What one section can
judge alone stands in its schema.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.config import ATTENTIONS, MLPS, NORMS
from stages.checkpoint import named, wrong_sha256
from stages.errors import BadInput
from stages.first_weights import FOLDER, Problem, has_begun, problem_of_first_weights, tokenizer_problem
from stages.gguf_names import problem_of_learned, problem_of_model, problem_of_tokenizer
from stages.inputs import problem_of_inputs
from stages.params import ParamsFile
from stages.train.feasible import infeasible
from stages.train.params import NOT_THERE, run_and_step
from stages.wording import counted


def check_combinations(params: ParamsFile, sections: Mapping[str, Any]) -> None:
    """Runs every check.

    Raises:
        BadInput: the first impossible combination, with its line and the mend.
    """
    by_section = (check(sections) for check in CHECKS)
    root = params.path.parent
    with_files = (
        check(sections, root)
        for check in (readable_inputs, known_sources, initial_weights, further_texts, readable_by_llama_cpp)
    )
    for keys, problem in itertools.chain(*by_section, *with_files):
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
            f"{tokens} tokens are {counted(tokens // context, 'row')} of pack.context_length {context}, fewer than "
            f"execution.n_processes {processes}; use {processes * context} or more, or fewer processes"
        )
        yield keys, problem


def sinks_within_rows(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Sinks are few first tokens beside a window; as many as a row has would be no window at all."""
    model, context = sections["model"], sections["pack"].context_length
    if "swa" in model.kinds and model.sink_tokens >= context:
        yield (
            ["model", "sink_tokens"],
            f"{model.sink_tokens} are all of a row of pack.context_length {context}, so no window would hide anything; "
            "set it to a few, such as 4, or leave swa out of layer_pattern",
        )


def built_in_parts(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Norms, MLPs and attentions are built in, or stand below model/ (which stages/code/parts.py looks up)."""
    model = sections["model"]
    chosen = {"norm": ((model.norm,), NORMS), "mlp": ((model.mlp,), MLPS), "layer_pattern": (model.kinds, ATTENTIONS)}
    for key, (names, known) in chosen.items():
        for name in names:
            if name not in known and not name.startswith("model."):
                near = difflib.get_close_matches(name.lower(), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
                yield ["model", key], f"{name!r} is unknown; {hint} A class of yours is named model.FILE.CLASS"


def readable_inputs(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """DVC reads all of `download.inputs`, whatever the source is."""
    if problem := problem_of_inputs(root / sections["download"].inputs):
        yield ["download", "inputs"], problem


def known_sources(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """The sources of one's own files are known by their names; of others pack finds out before it begins."""
    download, pack = sections["download"], sections["pack"]
    if not pack.mixture or download.source != "files":
        return
    from stages.sources import find_files

    with contextlib.suppress(BadInput):  # the stage download says what is wrong with them
        known = {file.source for file in find_files(root / download.inputs, download.include)[0]}
        if known and (problem := pack.unknown_source(known)):
            yield ["pack", "mixture"], f"no file in {download.inputs} is of the source {problem}"


def initial_weights(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """The folder of first weights is whole, of this architecture, and the one that `init_sha256` means; where a
    training has begun from them, nobody needs it any more."""
    model, execution = sections["model"], sections["execution"]
    if sections["train"].resume_from or (model.init_sha256 and has_begun(model, execution, root)):
        return
    if found := problem_of_first_weights(model, execution, root, sections["pack"].context_length):
        yield found
    folder, given = execution.init_folder(root), sections["tokenizer"].file
    if model.init_sha256 and given and (folder / "tokenizer.json").is_file():
        yield from tokenizer_of_first_weights(folder, root / Path(given).expanduser())


def tokenizer_of_first_weights(folder: Path, given: Path) -> Iterator[Problem]:
    """Where the tokenizer of the data is a file, it can be compared before there are data."""
    try:
        problem = tokenizer_problem(folder, given) if given.is_file() else None  # the stage tokenizer misses it
    except BadInput as error:
        problem = str(error)
    if problem:
        yield FOLDER, f"{folder}: tokenizer.json: {problem}; name weights of the tokenizer of the data"


def resumed_checkpoint(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """The checkpoint of `resume_from` is there, and the one that `resume_sha256` means. One of an MLflow run is looked
    up by train."""
    train = sections["train"]
    if not train.resume_from or run_and_step(train.resume_from):
        return
    if Path(train.resume_from).expanduser().resolve().is_relative_to(Path("data").resolve()):
        yield ["train", "resume_from"], "lies in data/, which the stages write anew; copy the folder elsewhere first"
    elif (folder := named(train.resume_from, Path())) is None:
        yield ["train", "resume_from"], f"{train.resume_from}: {NOT_THERE}"
    elif problem := wrong_sha256(folder, train.resume_sha256):
        yield ["train", "resume_sha256"], problem


def feasible_training(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Precision, graphs, backends and parts that no machine could give, or not the one that is named."""
    train, rows = sections["train"], sections["train"].batch_tokens // sections["pack"].context_length
    for found in infeasible(sections["model"], train, sections["execution"], rows):
        yield found.keys, found.problem


def further_texts(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """Files of `evaluate.texts` are looked at before the training and not after it."""
    for name, text in sections["evaluate"].texts.items():
        if problem := text.problem(root):
            yield ["evaluate", "texts", name], problem


def exportable(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """ONNX is written from what is built in (stages/export/onnx_blocks.py), GGUF of what llama.cpp has."""
    own = sections["model"].own_parts
    if own and "onnx" in sections["export"].formats:
        yield ["export", "formats"], f"onnx has no nodes for {own[0]}, a class of yours; leave onnx out of the list"
    if "gguf" in sections["export"].formats:
        if importlib.util.find_spec("gguf") is None:
            yield ["export", "formats"], "gguf needs the package gguf; run `pip install 'millrace[gguf]'`"
        if problem := problem_of_model(sections["model"]):
            yield ["export", "formats"], f"gguf {problem}; leave gguf out of the list"


def readable_by_llama_cpp(sections: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    """llama.cpp must cut text as the tokenizer does; a damaged file is for the stage `tokenizer` to name."""
    tokenizer = sections["tokenizer"]
    if "gguf" not in sections["export"].formats:
        return
    path = root / Path(tokenizer.file).expanduser()
    if not tokenizer.file:
        problem = problem_of_learned(tokenizer.type, tokenizer.max_digits)
    else:
        try:
            problem = problem_of_tokenizer(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            problem = ""
    if problem:
        yield ["export", "formats"], f"gguf {problem}; leave gguf out of the list"


CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (
    whole_rows,
    sinks_within_rows,
    built_in_parts,
    resumed_checkpoint,
    feasible_training,
    exportable,
)
