"""The MLflow registry on a real export: provenance, the model as MLflow loads it, and who is champion."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stages.entry import Job, file_sha256
from stages.execution import Execution
from stages.export.params import ExportParams
from stages.export.registry import Candidate, promotion, pyfunc_files, register
from stages.export.stage import publish_to_registry
from stages.tracking import open_run, store_address
from tests.stages.exports import OUTER_SETTINGS, SMALL, copy_inputs, written

DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTER_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_without_mlflow_the_log_says_how_to_register_later(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, SMALL)
    job.execution = Execution(tracking_uri=DEAD_SERVER)
    with open_run(job, "unreachable", {}) as tracked:
        publish_to_registry(job, ExportParams(), facts, tracked)
    said = capsys.readouterr().out
    assert "the export is whole but not registered (it does not answer)" in said
    assert "dvc repro --force --single-item export" in said


def client_of(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(store_address(Job("export", root))[0])


def test_the_model_is_registered_with_its_provenance_and_is_champion(workspace: Path, export: Path) -> None:
    client = client_of(workspace)
    version = client.get_model_version_by_alias("millrace", "champion")
    assert version.tags["bits_per_byte"] == "1.7123" and version.tags["eval_sha256"] == "51aa"
    assert version.tags["model_sha256"] == file_sha256(export / "hf" / "model.safetensors")
    assert version.tags["train_digest"] == "digest0" and len(version.tags["tokenizer_sha256"]) == 64
    assert version.tags["promotion"] == "champion: the first, with 1.7123 bits per byte"
    assert client.get_run(version.run_id).data.tags["millrace.run"] == "digest0"


def test_mlflow_loads_the_registered_model_and_it_writes_text(
    workspace: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    monkeypatch.setattr(sys, "path", list(sys.path))
    client = client_of(workspace)
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/millrace@champion")
    few = model.predict(["Returns the", "A"], params={"max_new_tokens": 3})
    assert len(few) == 2 and all(isinstance(text, str) for text in few)
    drawn = [model.predict("Returns", params={"temperature": 1.0, "seed": seed}) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_travels_with_a_version_needs_nothing_of_ours() -> None:
    imported = [line for line in pyfunc_files()["code/millrace_pyfunc.py"].splitlines() if "import" in line]
    assert not any("stages" in line or "from model" in line for line in imported)


def candidate(
    root: Path, sha256: str, bits_per_byte: float, eval_sha256: str = "e1", experiment: str = ""
) -> Candidate:
    folder = root / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    tags = {"bits_per_byte": str(bits_per_byte), "eval_sha256": eval_sha256}
    return Candidate("rules", sha256, folder, tags, experiment)


def test_champion_moves_by_rule_and_the_version_says_why(workspace: Path, export: Path, tmp_path: Path) -> None:
    said = []

    def registered(*args: object, **options: str) -> str:
        line = tracked.call(lambda client, run_id: register(client, run_id, candidate(tmp_path, *args, **options)), 60)
        said.append(line)
        return str(client.get_registered_model("rules").aliases.get("champion"))

    client = client_of(workspace)
    with open_run(Job("export", workspace), "rules", {}) as tracked:
        assert registered("a", 1.9, experiment="bluff-gyms") == "None"
        assert registered("b", 1.8) == "2"
        assert registered("c", 1.81) == "2"
        assert registered("d", 1.7, experiment="bluff-gyms") == "2"
        assert registered("e", 1.7, eval_sha256="e2") == "2"
        assert registered("f", float("nan")) == "2"
        assert registered("d", 1.7) == "4"
        assert registered("d", 1.7) == "4"
        tags = {str(v.version): v.tags["promotion"] for v in client.search_model_versions("name = 'rules'")}
        client.set_registered_model_alias("rules", "champion", "5")  # as the line about version 5 tells
        assert registered("e", 1.7, eval_sha256="e2") == "5"
    assert said[-2].startswith("rules version 4 (known already); champion: 1.7000")
    assert said[-1] == "rules version 5 (known already); champion: chosen by hand"
    assert tags["1"] == "not champion: made in the DVC experiment bluff-gyms, where no alias moves"
    assert tags["2"] == "champion: the first, with 1.8000 bits per byte"
    assert tags["3"] == "not champion: 1.8100 bits per byte are not below the 1.8000 of version 2 on the same text"
    assert tags["4"] == "champion: 1.7000 bits per byte are below the 1.8000 of version 2 on the same text"
    assert tags["5"] == (
        "not champion: version 2 was measured on other text (e1, here e2); to choose this one all the same: "
        "MlflowClient().set_registered_model_alias('rules', 'champion', '5'), see docs/tracking.md"
    )
    assert tags["6"].startswith("not champion: nan bits per byte are not below")


def test_a_champion_chosen_by_hand_without_figures_is_not_replaced(
    workspace: Path, export: Path, tmp_path: Path
) -> None:
    client = client_of(workspace)
    client.create_registered_model("hand")
    by_hand = client.create_model_version("hand", (tmp_path / "any").as_uri())
    moves, reason = promotion(candidate(tmp_path, "a", 1.0), client.get_model_version("hand", "1"), None)
    assert moves and reason.startswith("the first")
    other = client.create_model_version("hand", (tmp_path / "any").as_uri())
    moves, reason = promotion(candidate(tmp_path, "a", 1.0), other, by_hand)
    assert not moves and "was measured on other text (unknown" in reason
