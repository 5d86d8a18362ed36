"""Registers the export in MLflow: one version per export, and two aliases that move by rule.

An export is its manifest, which holds the sha256 of every file: registered again it finds its version. `challenger`
is the newest version that may compete, `champion` the best one on one test text (promotion.py has the rule). Neither
moves within a DVC experiment; `millrace promote VERSION` lets an experiment's model compete. The tag `promotion`
says why a version became champion or did not. Who moves an alias holds a lock in the main repository.

A version holds the folders of the formats that were made, three small files that make it a pyfunc model (MLmodel,
requirements, pyfunc.py), and in `provenance` what leads back to its workspace (snapshot.py) and its losses on each
test document. They are written here because `mlflow.pyfunc.log_model` imports the model to guess what we know, and
takes a server's clock into the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.entry import Job
from stages.export import pyfunc
from stages.export.promotion import Measured, comparable, lack_of, verdict
from stages.export.snapshot import snapshot
from stages.files import file_sha256
from stages.progress import say
from stages.provenance import in_experiment
from stages.tracking import Run, Unavailable, shared_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
MODULE = "millrace_pyfunc"
FIGURES = ("bits_per_byte", "bits_per_byte_low", "bits_per_byte_high", "eval_sha256", "eval_precision")
TYPES = {int: "long", float: "double"}
REGISTER_SECONDS = 300.0  # a large model takes its time to upload
HOW_TO_GO_BACK = """\
The workspace that made this version, with every file of every stage (docs/tracking.md):

    git worktree add ../back {git_commit} && cd ../back && dvc cache dir --local "$OLDPWD/.dvc/cache"
    mlflow artifacts download --artifact-uri models:/{name}/{version}/provenance --dst-path ..
    git apply --allow-empty ../provenance/changes.patch && cp ../provenance/dvc.lock . && dvc checkout
"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is registered.

    Attributes:
        name: of the registered model. folder: the export, with hf/ and manifest.json.
        tags: provenance and figures, all of it text.
        provenance: small files by name, for the folder of this name in the version.
        experiment: the DVC experiment that made it, or empty; within one no alias moves.
        lock: a file; whoever registers or moves an alias holds it.
    """

    name: str
    folder: Path
    tags: Mapping[str, str]
    provenance: Mapping[str, bytes]
    experiment: str
    lock: Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a version, and why."""

    name: str
    version: str
    new: bool
    champion: bool
    reason: str

    def __str__(self) -> str:
        role = CHAMPION if self.champion else f"not {CHAMPION}"
        return f"{self.name} version {self.version} ({'new' if self.new else 'known already'}); {role}: {self.reason}"


def publish(job: Job, name: str, key: str, folder: Path, tracked: Run) -> None:
    """A version in MLflow's registry, or a line that says why there is none. For the stage `export`."""

    def work(client: MlflowClient, run_id: str) -> Outcome:
        return register(client, run_id, candidate_of(job, name, key, folder, tracked.tags))

    try:
        say(f"MLflow: {tracked.call(work, REGISTER_SECONDS)}")
    except Unavailable as reason:
        if job.execution.tracking:
            say(f"MLflow: the export is whole but not registered ({reason}); later, this registers it:")
            say("    millrace promote")


def candidate_of(job: Job, name: str, key: str, folder: Path, tags: Mapping[str, str]) -> Candidate:
    """The export in `folder`, with the figures and the losses that stand in data/evaluate."""
    evaluate = job.root / "data" / "evaluate"
    figures = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
    files = {"manifest.json": (folder / "manifest.json").read_bytes(), **snapshot(job, folder)}
    losses = evaluate / "plots" / "documents.csv"
    if losses.is_file():
        files["documents.csv"] = losses.read_bytes()
    hashes = {
        "manifest_sha256": file_sha256(folder / "manifest.json"),
        "model_sha256": file_sha256(folder / "hf" / "model.safetensors"),
        "train_digest": key,
    }
    experiment = os.environ.get("DVC_EXP_NAME", "unnamed") if in_experiment(job.root) else ""
    measured = {key: str(figures[key]) for key in FIGURES if key in figures}
    return Candidate(name, folder, {**tags, **measured, **hashes}, files, experiment, lock_of(job))


def register(client: MlflowClient, run_id: str, candidate: Candidate) -> Outcome:
    """Makes the version or finds it, and applies the rule; within an experiment it only says so."""
    with locked(candidate.lock):
        version = find_version(client, candidate.name, candidate.tags["manifest_sha256"])
        new = version is None
        if version is None:
            version = create_version(client, run_id, candidate)
        if not candidate.experiment:
            return dataclasses.replace(apply_rule(client, version), new=new)
        reason = (
            f"made in the DVC experiment {candidate.experiment}; `millrace promote {version.version}` lets it compete"
        )
        if new:
            client.set_model_version_tag(version.name, version.version, "promotion", f"not {CHAMPION}: {reason}")
        return Outcome(version.name, str(version.version), new, False, reason)


def find_version(client: MlflowClient, name: str, manifest_sha256: str) -> ModelVersion | None:
    """The version of the same export, if there is one."""
    query = f"name = '{name}' and tag.manifest_sha256 = '{manifest_sha256}'"
    found = client.search_model_versions(query, max_results=1)
    return found[0] if found else None


def made_formats(folder: Path) -> list[str]:
    """The folders of an export that its manifest names more of than a README.md, which stands alone in the others."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {entry["file"] for entry in manifest["files"]}
    names = {name.split("/")[0] for name in files}
    return sorted(name for name in names if any(file.startswith(f"{name}/") for file in files - {f"{name}/README.md"}))


def create_version(client: MlflowClient, run_id: str, candidate: Candidate) -> ModelVersion:
    """Uploads the folder as a pyfunc model below the run and registers it."""
    from mlflow.exceptions import MlflowException

    place = f"model-{candidate.tags['manifest_sha256'][:16]}"
    for name in made_formats(candidate.folder):
        client.log_artifacts(run_id, str(candidate.folder / name), f"{place}/{name}")
    with tempfile.TemporaryDirectory() as beside:
        files = {name: text.encode() for name, text in pyfunc_files().items()}
        files |= {f"provenance/{name}": content for name, content in candidate.provenance.items()}
        for name, content in files.items():
            path = Path(beside) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run_id, beside, place)
    try:
        client.create_registered_model(candidate.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    version = client.create_model_version(candidate.name, source, run_id, tags=dict(candidate.tags))
    if commit := candidate.tags.get("git_commit"):
        text = HOW_TO_GO_BACK.format(git_commit=commit, name=candidate.name, version=version.version)
        client.update_model_version(candidate.name, version.version, text)
    return version


def apply_rule(client: MlflowClient, version: ModelVersion, force_reason: str = "") -> Outcome:
    """Moves `champion` to the version where the rule, or a person, says so, and else `challenger`.

    The caller holds the lock: between reading the champion and moving the alias nobody else may do either.
    """
    name, number = version.name, str(version.version)
    aliases = {alias: str(at) for alias, at in client.get_registered_model(name).aliases.items()}
    holder = aliases.get(CHAMPION)
    if holder == number and not force_reason:
        said = version.tags.get("promotion", "")
        reason = said.removeprefix(f"{CHAMPION}: ") if said.startswith(f"{CHAMPION}: ") else "chosen by hand"
        return Outcome(name, number, False, True, reason)
    with tempfile.TemporaryDirectory() as folder:
        ours = measured(client, version, Path(folder))
        champion = None if holder is None else client.get_model_version(name, holder)
        theirs = None if champion is None else measured(client, champion, Path(folder))
        moves, reason = verdict(ours, theirs)
    if force_reason:
        moves, reason = True, f"by a person: {force_reason} (the rule: {reason})"
    role = CHAMPION if moves else f"not {CHAMPION}"
    # before the alias: a process that dies in between leaves a version that the rule decides on again
    client.set_model_version_tag(name, number, "promotion", f"{role}: {reason}")
    if moves:
        client.set_registered_model_alias(name, CHAMPION, number)
        if aliases.get(CHALLENGER) == number:
            client.delete_registered_model_alias(name, CHALLENGER)
    elif theirs is not None and comparable(ours, theirs) and not lack_of(ours):
        client.set_registered_model_alias(name, CHALLENGER, number)
    return Outcome(name, number, False, moves, reason)


def measured(client: MlflowClient, version: ModelVersion, folder: Path) -> Measured:
    """The figures of a version, its losses by document brought into `folder`."""
    value, low, high = (float(version.tags.get(key, "nan")) for key in FIGURES[:3])
    documents = None
    place = f"{Path(version.source or '').name}/provenance/documents.csv"
    target = folder / str(version.version)
    target.mkdir()
    with contextlib.suppress(Exception):  # its run was deleted, or it was registered by hand: the intervals decide
        documents = Path(client.download_artifacts(version.run_id or "", place, str(target)))
    text, precision = version.tags.get("eval_sha256", ""), version.tags.get("eval_precision", "fp32")
    return Measured(str(version.version), value, low, high, text, documents, precision)


def lock_of(job: Job) -> Path:
    return shared_folder(job) / "registry.lock"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pyfunc_files() -> dict[str, str]:
    """What stands beside the folder `hf` in a version: MLflow's description, requirements, and the code."""
    packages = [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "transformers")]
    python = platform.python_version()
    options = [{"name": k, "default": v, "shape": None, "type": TYPES[type(v)]} for k, v in pyfunc.DEFAULTS.items()]
    text_column = json.dumps([{"type": "string", "required": True}])
    described: dict[str, Any] = {
        "flavors": {
            "python_function": {
                "loader_module": MODULE,
                "code": "code",
                "data": "hf",
                "env": {"virtualenv": "python_env.yaml"},
                "python_version": python,
            }
        },
        "mlflow_version": importlib.metadata.version("mlflow"),
        "signature": {"inputs": text_column, "outputs": text_column, "params": json.dumps(options)},
    }
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    return {
        "MLmodel": json.dumps(described, indent=2),  # JSON is YAML
        "python_env.yaml": json.dumps(environment, indent=2),
        "requirements.txt": "\n".join(packages) + "\n",
        f"code/{MODULE}.py": Path(pyfunc.__file__).read_text(encoding="utf-8"),
    }
