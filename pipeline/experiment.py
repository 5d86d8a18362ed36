"""Runs with other params beside the workspace, and keeps the result as a DVC experiment.

    millrace run -S train.max_steps=20                 ->      experiment max-steps-3f2a91c: dvc exp show
    prefect deployment run pretrain/cpu \\
      -p overrides='{"train.max_steps": 20}'           ->      the same

`dvc exp run` cannot be split into one task per stage. So the working tree, as it is now, is copied into
a git worktree in .dvc/tmp/millrace; params.yaml is edited there; the flow runs there, on the same DVC
cache, with DVC_ROOT and DVC_EXP_NAME set as `dvc exp run` sets them; and `dvc exp save` keeps what came
out. The name follows from the commit and the overrides: the same command goes on with the same one.
The workspace is not touched, and the worktree is removed at the end in any case: unfinished training
lies in the scratch of the main repository.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.dvc_program import dvc
from pipeline.graph import Graph
from pipeline.links import cache_folder
from pipeline.params_view import refuse_wrong
from pipeline.reproduce import stale_stages
from pipeline.smoke import alone_in, copy_working_tree, override_params
from stages.errors import BadInput
from stages.params import ParamsFile


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run beside: its name for DVC, the folder it works in, and what its stages find in their environment."""

    name: str
    folder: Path
    variables: dict[str, str]

    def foreign_metrics(self, graph: Graph) -> list[str]:
        """The stages whose metrics are those of other params: of the commit, from before the overrides.

        After a run of some stages alone, what hangs on a stale stage has not seen the overrides either.
        """
        stale = stale_stages(self.folder)
        if stale is None:
            raise BadInput("DVC cannot tell which stages are stale, so nothing was saved; `dvc status` says why")
        unseen = stale | {stage for name in stale & graph.stages.keys() for stage in graph.downstream(name)}
        return [name for name, stage in graph.stages.items() if stage.metrics and name in unseen]

    def keep(self, graph: Graph, stages: Sequence[str]) -> str:
        """Saves the experiment if its metrics are of its params; the line that says what was done.

        Raises:
            BadInput: DVC refused, with its reason.
        """
        if foreign := self.foreign_metrics(graph):
            return (
                f"no experiment saved: the metrics of {', '.join(foreign)} are not of these params; what ran is in the "
                "DVC cache, and the same command without stages runs the rest"
            )
        self.save(stages)
        return f"experiment {self.name}: `dvc exp show`, `dvc exp apply {self.name}`"

    def save(self, stages: Sequence[str]) -> None:
        """Keeps params, metrics and the outputs of `stages` as a DVC experiment of the present commit.

        Raises:
            BadInput: DVC refused, with its reason.
        """
        saved = dvc(self.folder, "exp", "save", "--name", self.name, "--force", *stages)
        if saved.returncode:
            raise BadInput(f"`dvc exp save` refused: {reason_in(saved.stderr)}; the outputs are in the DVC cache")


@contextlib.contextmanager
def worktree(root: Path, overrides: Mapping[str, Mapping[str, Any]]) -> Iterator[Experiment]:
    """A worktree with the present files and with overrides such as `{"train": {"max_steps": 20}}` in params.yaml.

    Raises:
        BadInput: params that the stage `code` would refuse, no commit to stand on, or the same command at work.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", problem="there is no commit yet")
    refuse_wrong(root, overrides, "overrides")
    name = name_of(commit, overrides)
    folder = root / ".dvc" / "tmp" / "millrace" / "worktrees" / name
    with alone_in(folder):
        _sweep(root, folder.parent, keep=folder)
        remove(root, folder)
        try:
            fill(root, folder, overrides)
            yield Experiment(name, folder, {"DVC_ROOT": str(root), "DVC_EXP_NAME": name})
        finally:
            remove(root, folder)


def parse(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["train.max_steps=20"]` as `{"train": {"max_steps": 20}}`; values are YAML, as in params.yaml."""
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        section, dot, key = dotted.partition(".")
        if not (equals and dot and section and key) or "." in key:
            raise BadInput(f"-S {setting}: must read section.key=value, such as -S train.max_steps=20")
        try:
            found.setdefault(section, {})[key] = YAML(typ="safe").load(text)
        except YAMLError:
            raise BadInput(f"-S {setting}: {text!r} is not valid YAML; quote it as you would in params.yaml") from None
    return found


def nested(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"train.max_steps": 20}`, as the flow takes it, as `{"train": {"max_steps": 20}}`."""
    found: dict[str, dict[str, Any]] = {}
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if not (section and key) or "." in key:
            raise BadInput(f'overrides: {dotted}: must read section.key, as in {{"train.max_steps": 20}}')
        found.setdefault(section, {})[key] = value
    return found


def dotted(overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The inverse of `nested`."""
    return {f"{section}.{key}": value for section, keys in overrides.items() for key, value in keys.items()}


def name_of(commit: str, overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """A name that tells the last overridden key, and is the same for the same commit and overrides."""
    flat = sorted(f"{name}={value!r}" for name, value in dotted(overrides).items())
    digest = hashlib.sha256("\n".join([commit, *flat]).encode()).hexdigest()[:7]
    label = list(list(overrides.values())[-1])[-1].replace("_", "-")
    return f"{label}-{digest}"


def fill(root: Path, folder: Path, overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes the worktree: the files as they are now, the params, the cache of the main repository."""
    _git(root, "worktree", "add", "--detach", "--no-checkout", str(folder), "HEAD", problem="no worktree can be made")
    inputs = ParamsFile(root / "params.yaml").values.get("download", {}).get("inputs", "")
    for name in copy_working_tree(root, folder):
        if inputs and Path(name).is_relative_to(inputs):
            raise BadInput(
                f"-S runs in a copy, which leaves out {name} (large, and unknown to git): `git add` or `dvc add` it, "
                "or move it out of the repository and name its folder with an absolute download.inputs"
            )
    _git(folder, "reset", "--quiet", problem="the worktree cannot be read")
    override_params(folder / "params.yaml", overrides)
    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copy2(local, folder / ".dvc" / "config.local")
    dvc(folder, "cache", "dir", "--local", str(cache_folder(root).resolve())).check_returncode()
    dvc(folder, "checkout", "--quiet", "--allow-missing")  # what cannot be had is made again


def _sweep(root: Path, worktrees: Path, keep: Path) -> None:
    """Removes the worktrees that killed runs have left; a run at work holds the lock of its own."""
    for folder in worktrees.iterdir():
        if folder.is_dir() and folder != keep:
            with contextlib.suppress(BadInput), alone_in(folder):
                remove(root, folder)


def remove(root: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "worktree", "prune"], cwd=root, capture_output=True, check=False)


def _git(folder: Path, *arguments: str, problem: str) -> str:
    command = ["git", *arguments]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, start_new_session=True)
    if answer.returncode:
        reason = reason_in(answer.stderr)
        raise BadInput(f"-S runs beside the workspace, in a git worktree: {problem}{f' ({reason})' if reason else ''}")
    return answer.stdout.strip()


def reason_in(text: str) -> str:
    """The line with the reason: DVC's last error, behind which it may offer its help, else the last line."""
    lines = text.strip().split("\n")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return [*lines, *errors][-1].removeprefix("unexpected error - ")
