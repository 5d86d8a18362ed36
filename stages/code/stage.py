"""The gate of the pipeline: every param is checked, and the code of every stage gets a fingerprint.

dvc.yaml lets this stage depend on `model`, `stages` and params.yaml, and every other stage on its own
data/code/STAGE.json alone. So an edit of a comment runs this stage (about a second) and nothing else,
an edit in stages/clean runs clean and what follows it, and an edit in `model` runs train, evaluate
and export. `diff` of two fingerprints names the functions that changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stages.code.combinations import check_combinations
from stages.code.own_training import own_training_modules
from stages.code.parts import own_modules, reachable
from stages.code.sections import read_sections
from stages.entry import Job
from stages.errors import BadInput
from stages.files import write_json
from stages.fingerprint.functions import bytes_hash
from stages.fingerprint.imports import Project
from stages.fingerprint.memo import memo_of
from stages.params import ParamsFile
from stages.progress import say

VERSION = 1

# Modules that decide nothing that a later stage reads: progress shows it, first_compile and dvc_cache say a line of
# it; tracking, its store, provenance and the registry report it; execution and devices are where and how fast;
# fingerprint.current refuses to begin; the hooks of train that look on write pages, tables and lines for people. They
# are in no fingerprint, and tests/stages/test_code.py swaps them for others and compares bytes.
WITHOUT_EFFECT = frozenset(
    {
        "stages.fingerprint.current",
        "stages.devices",
        "stages.dvc_cache",
        "stages.execution",
        "stages.export.registry",
        "stages.first_compile",
        "stages.mlflow_store",
        "stages.progress",
        "stages.provenance",
        "stages.tracking",
        "stages.train.curves",
        "stages.train.memory",
        "stages.train.peaks",
        "stages.train.probes",  # own_training.py takes it in where there are probes, whose table evaluate reads
        "stages.train.profile",
        "stages.train.samples",
        "stages.train.spikes",
    }
)


def run(job: Job) -> None:
    params = ParamsFile(job.root / "params.yaml")
    sections = read_sections(params)
    check_combinations(params, sections)
    memo = memo_of(job.root)
    project = Project(job.root, memo)
    own = own_modules(params, project, sections["model"])
    own += own_training_modules(params, project, sections["train"])
    stages = stage_names(project)
    for stage in stages:
        write_json(job.staging / f"{stage}.json", fingerprint(project, stage, own))
    if changed := project.changed():
        raise BadInput(f"{changed[0]}: saved while it was read; give the same command again")
    memo.save()
    say(f"code: params.yaml is valid; fingerprints of {len(stages)} stages, {len(project.files)} modules")


def stage_names(project: Project) -> list[str]:
    """The folders below stages/ that can be run, but for this one."""
    names = [module.split(".") for module in project.files]
    return sorted(parts[1] for parts in names if parts[2:] == ["__main__"] and parts[1] != "code")


def fingerprint(project: Project, stage: str, own: Sequence[str] = ()) -> dict:
    """What stands in data/code/STAGE.json: a hash per function of all modules the stage can reach.

    `own` are modules of parts, hooks and objectives that users named in params.
    """
    modules: dict[str, dict[str, str]] = {}
    for module in reachable(project, f"stages.{stage}.__main__", WITHOUT_EFFECT, own):
        if hashes := project.hashes(module):
            modules[module] = hashes
        for path in project.data_files(module):
            modules[_name(path, project.root)] = {"<file>": bytes_hash(path.read_bytes())}
    digest = bytes_hash(json.dumps(modules, sort_keys=True).encode())
    return {"version": VERSION, "digest": digest, "modules": modules}


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
