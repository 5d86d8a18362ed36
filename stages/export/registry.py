"""Registers the export in MLflow: one version per model, and an alias that moves by rule.

A model is its weights: the same model.safetensors registered again finds its version. The alias
`champion` is the best model on one text, so it moves only outside of experiments, and only when bits
per byte on the same test text (equal eval_sha256) are lower. The tag `promotion` of a version says
why it moved or did not. Example: version 3 is champion with 1.7123; version 4 has 1.7012 on the same
text and becomes it: "1.7012 bits per byte are below the 1.7123 of version 3 on the same text".

A version holds the folder, and three small files that make it a pyfunc model: MLmodel, the
requirements, and pyfunc.py. They are written here because `mlflow.pyfunc.log_model` imports the model
to guess what we know, and takes a server's clock into the files.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.export import pyfunc

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
MODULE = "millrace_pyfunc"
FIGURES = ("bits_per_byte", "eval_sha256")
TYPES = {int: "long", float: "double"}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is registered.

    Attributes:
        name: of the registered model. sha256: of its model.safetensors. folder: the export.
        tags: provenance, all of it text, with bits_per_byte and eval_sha256.
        experiment: the DVC experiment that made it, or empty; within one no alias moves.
    """

    name: str
    sha256: str
    folder: Path
    tags: Mapping[str, str]
    experiment: str


def register(client: MlflowClient, run_id: str, candidate: Candidate) -> str:
    """Makes the version or finds it, promotes it or says why not. Returns one line for the log."""
    version = find_version(client, candidate)
    known = version is not None
    if version is None:
        version = create_version(client, run_id, candidate)
    else:
        for key in FIGURES:  # evaluate may have measured the same weights on other text
            client.set_model_version_tag(candidate.name, version.version, key, candidate.tags[key])
    moves, reason = promotion(candidate, version, champion_of(client, candidate.name))
    if moves:
        client.set_registered_model_alias(candidate.name, CHAMPION, version.version)
    said = f"{CHAMPION}: {reason}" if moves else f"not {CHAMPION}: {reason}"
    client.set_model_version_tag(candidate.name, version.version, "promotion", said)
    return f"{candidate.name} version {version.version} ({'known already' if known else 'new'}); {said}"


def find_version(client: MlflowClient, candidate: Candidate) -> ModelVersion | None:
    """The version with the same weights, if there is one."""
    query = f"name = '{candidate.name}' and tag.model_sha256 = '{candidate.sha256}'"
    found = client.search_model_versions(query, max_results=1)
    return found[0] if found else None


def create_version(client: MlflowClient, run_id: str, candidate: Candidate) -> ModelVersion:
    """Uploads the folder as a pyfunc model below the run and registers it."""
    from mlflow.exceptions import MlflowException

    place = f"model-{candidate.sha256[:16]}"
    client.log_artifacts(run_id, str(candidate.folder), f"{place}/hf")
    for name, text in pyfunc_files().items():
        client.log_text(run_id, text, f"{place}/{name}")
    try:
        client.create_registered_model(candidate.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    tags = {**candidate.tags, "model_sha256": candidate.sha256}
    return client.create_model_version(candidate.name, source, run_id, tags=tags)


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else client.get_model_version(name, version)


def promotion(candidate: Candidate, version: ModelVersion, champion: ModelVersion | None) -> tuple[bool, str]:
    """Whether the alias moves to `version`, and why or why not."""
    ours = float(candidate.tags["bits_per_byte"])
    if champion is not None and str(champion.version) == str(version.version):  # a number in SQL, text over HTTP
        said = champion.tags.get("promotion", "")
        return True, said.removeprefix(f"{CHAMPION}: ") if said.startswith(CHAMPION) else "chosen by hand"
    if candidate.experiment:
        return False, f"made in the DVC experiment {candidate.experiment}, where no alias moves"
    if champion is None:
        return True, f"the first, with {ours:.4f} bits per byte"
    text = champion.tags.get("eval_sha256", "unknown")
    if text != candidate.tags["eval_sha256"]:
        mine = candidate.tags["eval_sha256"]
        return False, (
            f"version {champion.version} was measured on other text ({text[:12]}, here {mine[:12]}); to choose this "
            f"one all the same: MlflowClient().set_registered_model_alias({candidate.name!r}, {CHAMPION!r}, "
            f"{str(version.version)!r}), see docs/tracking.md"
        )
    theirs = float(champion.tags["bits_per_byte"])
    relation = "are below" if ours < theirs else "are not below"
    return ours < theirs, (
        f"{ours:.4f} bits per byte {relation} the {theirs:.4f} of version {champion.version} on the same text"
    )


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
