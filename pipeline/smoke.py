"""Every stage in a minute and a half, with tiny params, in a copy of the working tree.

The copy lies in .dvc/tmp/millrace/smoke with a data folder, a DVC cache and an MLflow store of its own,
so nothing of the workspace is read or written: not data/, not dvc.lock, not the run cache, no registry.
It holds the files as they are now, tracked or not, but for what git ignores and for large files that
git does not know. params.yaml is the present one with the values of recipes/smoke.yaml over it; the model
keeps its kinds of layers, norms and MLPs (`fitted`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from model.config import pattern_of
from model.pattern import cycle
from pipeline.links import CHEAP_LINKS
from stages.errors import BadInput
from stages.params import ParamsFile

RECIPE = Path("recipes") / "smoke.yaml"
LARGE_BYTES = 16 << 20
# Where trackers, scratch and first weights are, as the environment may say; the copy has its own, and draws weights.
ELSEWHERE = (
    "MLFLOW_TRACKING_URI",
    "MILLRACE_EXECUTION__TRACKING_URI",
    "MILLRACE_EXECUTION__SCRATCH",
    "MILLRACE_EXECUTION__INIT_FROM",
)


@contextlib.contextmanager
def smoke_copy(root: Path) -> Iterator[Path]:
    """The copy, ready to run. It is removed at the end, unless the block fails.

    Raises:
        BadInput: another smoke run is at work here, or there is no recipe.
    """
    folder = root / ".dvc" / "tmp" / "millrace" / "smoke"
    with alone_in(folder):
        shutil.rmtree(folder, ignore_errors=True)
        copy_working_tree(root, folder)
        override_params(folder / "params.yaml", fitted(_recipe(folder), ParamsFile(folder / "params.yaml").values))
        settings = f'[core]\n    no_scm = true\n[cache]\n    dir = cache\n    type = "{CHEAP_LINKS}"\n'
        (folder / ".dvc" / "config.local").write_text(settings)
        before = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
        try:
            yield folder
        finally:
            os.environ.update(before)
        shutil.rmtree(folder)


AT_WORK = "the same command is at work there already; wait for its end"


@contextlib.contextmanager
def alone_in(folder: Path, otherwise: str = AT_WORK) -> Iterator[None]:
    """Holds the lock beside a folder.

    Raises:
        BadInput: somebody else holds it, with what to say then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{folder}: {otherwise}") from None
        yield


def copy_working_tree(root: Path, folder: Path) -> list[str]:
    """Copies the files that git knows, and small ones that it does not ignore, as they are now.

    Returns the names of the large ones that it left out.
    """

    def listed(*options: str) -> list[str]:
        command = ["git", "ls-files", "-z", *options]
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if answer.returncode:
            reason = answer.stderr.strip().split("\n")[0]
            raise BadInput(f"{root}: git cannot list its files ({reason}); run this in the root of a clone")
        return [name for name in answer.stdout.split("\0") if name]

    untracked = listed("--others", "--exclude-standard")
    small = [name for name in untracked if (root / name).lstat().st_size <= LARGE_BYTES]
    for name in {*listed("--cached"), *small}:
        source, target = root / name, folder / name
        if source.is_symlink() or source.is_file():  # a deleted file is listed as well
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return sorted(set(untracked) - set(small))


def override_params(path: Path, overrides: Mapping[str, Any]) -> None:
    """Sets `{"train": {"max_steps": 20}}` in a params.yaml, whose comments stay.

    A key that the file does not have is added: the schemas judge it, with the nearest name.
    """
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    content = yaml.load(path.read_text(encoding="utf-8"))
    for section, values in overrides.items():
        content.setdefault(section, {}).update(values)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def fitted(recipe: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, in so many layers that every kind of the user's `layer_pattern` is among them, and with first
    weights drawn: those of a folder have other sizes. What counts layers or slots of a row is lowered to what there is.

    Example: with `swa*2+mla*1` and 12 dense layers in params.yaml, 3 layers, 2 of them dense.
    """
    model = params.get("model") or {}
    if "model" not in recipe:
        return dict(recipe)
    with contextlib.suppress(ValueError, TypeError):  # not a pattern: the stage `code` says so
        pattern = pattern_of(model.get("layer_pattern", "auto"), model.get("preset", ""))
        layers = max(recipe["model"]["n_layers"], len(cycle(pattern)))
        dense = min(model.get("dense_layers", 0), layers - 1)
        besides = {"n_layers": layers, "dense_layers": dense, "init_sha256": ""}
        if "sink_tokens" in model:
            besides["sink_tokens"] = min(model["sink_tokens"], recipe["pack"]["context_length"] // 2)
        found = {**recipe, "model": {**recipe["model"], **besides}}
        kind = str((params.get("execution") or {}).get("activation_checkpointing", ""))
        if kind.startswith("every_"):
            every = min(int(kind.removeprefix("every_")), layers)
            found["execution"] = {**recipe["execution"], "activation_checkpointing": f"every_{every}"}
        return found
    return dict(recipe)


def _recipe(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return YAML(typ="safe").load((folder / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{RECIPE}: not found; it holds the tiny params of the smoke run") from None
