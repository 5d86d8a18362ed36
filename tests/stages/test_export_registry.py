"""The MLflow registry on a real export: provenance, the model as MLflow loads it, and who is champion."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from stages.entry import Job
from stages.execution import Execution
from stages.export.params import FORMATS
from stages.export.registry import Candidate, apply_rule, publish, pyfunc_files, register
from stages.export.stage import NOT_ASKED_FOR
from stages.files import file_sha256
from stages.tracking import open_run, store_address
from tests.stages.exports import OUTER_SETTINGS

DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTER_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_without_mlflow_the_log_says_how_to_register_later(
    workspace: Path, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    job = Job("export", tmp_path, Execution(tracking_uri=DEAD_SERVER))
    with open_run(job, "unreachable", {}) as tracked:
        publish(job, "millrace", "unreachable", export, tracked)
    said = capsys.readouterr().out
    assert "the export is whole but not registered (it does not answer)" in said
    assert "\n    millrace promote\n" in said


def client_of(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(store_address(Job("export", root))[0])


def test_the_model_is_registered_with_its_provenance_and_is_champion(workspace: Path, export: Path) -> None:
    client = client_of(workspace)
    version = client.get_model_version_by_alias("millrace", "champion")
    assert version.tags["bits_per_byte"] == "1.7123" and version.tags["eval_sha256"] == "51aa"
    assert version.tags["model_sha256"] == file_sha256(export / "hf" / "model.safetensors")
    assert version.tags["manifest_sha256"] == file_sha256(export / "manifest.json")
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
    assert len(model.predict(["Returns"], params={"max_new_tokens": 100000})) == 1
    with pytest.raises(ValueError, match="the context of the model has 32; shorten it"):
        model.predict(["Returns the number of " * 20])


def test_what_travels_with_a_version_needs_nothing_of_ours() -> None:
    imported = [line for line in pyfunc_files()["code/millrace_pyfunc.py"].splitlines() if "import" in line]
    assert not any("stages" in line or "from model" in line for line in imported)


def candidate(root: Path, sha256: str, bits_per_byte: float, text: str = "e1", experiment: str = "") -> Candidate:
    folder = root / "model"
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "gguf").mkdir(exist_ok=True)
    (folder / "gguf" / "README.md").write_text(NOT_ASKED_FOR.format("gguf"))
    manifest = {"files": [{"file": "gguf/README.md"}, {"file": "hf/config.json"}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    figures = {"bits_per_byte": bits_per_byte, "bits_per_byte_low": bits_per_byte - 0.02}
    figures["bits_per_byte_high"] = bits_per_byte + 0.02
    tags = {**{key: str(value) for key, value in figures.items()}, "eval_sha256": text, "manifest_sha256": sha256}
    losses = [f"{document},100,{bits_per_byte + document / 10}" for document in range(20)]
    files = {"documents.csv": "\n".join(["document,bytes,bits_per_byte", *losses]).encode()}
    return Candidate("rules", folder, tags, files, experiment, root / "registry.lock")


def test_a_version_holds_the_formats_that_were_made_and_no_other(workspace: Path, export: Path, tmp_path: Path) -> None:
    client = client_of(workspace)

    def formats(version: ModelVersion) -> set[str]:
        place = Path(version.source or "").name
        return {Path(file.path).name for file in client.list_artifacts(version.run_id or "", place) if file.is_dir}

    given = dataclasses.replace(candidate(tmp_path, "a", 1.9), name="formats")
    with open_run(Job("export", workspace), "formats", {}) as tracked:
        tracked.call(lambda client, run_id: register(client, run_id, given), 60)
    assert formats(client.get_model_version("formats", "1")) == {"hf", "code", "provenance"}
    champion = client.get_model_version_by_alias("millrace", "champion")  # of an export in all formats
    assert formats(champion) == {*FORMATS, "code", "provenance"}


def test_aliases_move_by_rule_and_each_version_says_why(workspace: Path, export: Path, tmp_path: Path) -> None:
    client, said = client_of(workspace), []

    def registered(*args: object, **options: str) -> dict[str, str]:
        given = candidate(tmp_path, *args, **options)
        said.append(str(tracked.call(lambda client, run_id: register(client, run_id, given), 60)))
        return {name: str(at) for name, at in client.get_registered_model("rules").aliases.items()}

    with open_run(Job("export", workspace), "rules", {}) as tracked:
        assert registered("a", 1.9, experiment="bluff-gyms") == {}
        assert registered("b", 1.8) == {"champion": "2"}
        assert registered("c", 1.81) == {"champion": "2", "challenger": "3"}
        assert registered("d", 1.7, experiment="bluff-gyms") == {"champion": "2", "challenger": "3"}
        assert registered("e", 1.7, text="e2") == {"champion": "2", "challenger": "3"}
        assert registered("f", float("nan")) == {"champion": "2", "challenger": "3"}
        assert registered("d", 1.7) == {"champion": "4", "challenger": "3"}
        assert registered("d", 1.7) == {"champion": "4", "challenger": "3"}
        fifth = client.get_model_version("rules", "5")
        forced = apply_rule(client, fifth, "the text of the product")
        assert registered("e", 1.7, text="e2") == {"champion": "5", "challenger": "3"}
    tags = {str(v.version): v.tags["promotion"] for v in client.search_model_versions("name = 'rules'")}
    assert said[-2].startswith("rules version 4 (known already); champion: 1.7000 bits per byte beside the 1.8000")
    assert tags["1"] == ("not champion: made in the DVC experiment bluff-gyms; `millrace promote 1` lets it compete")
    assert tags["2"] == "champion: the first, with 1.8000 bits per byte"
    assert tags["3"].startswith("not champion: 1.8100 bits per byte beside the 1.8000 of version 2 on the same text")
    assert "difference over 20 documents, -0.1000 to -0.1000, is below 0" in tags["4"]
    assert forced.reason.startswith("by a person: the text of the product (the rule: version 4 was measured on other")
    assert tags["5"] == f"champion: {forced.reason}" and said[-1].endswith(tags["5"])
    assert tags["6"].startswith("not champion: it has no finite bits per byte")


def test_a_challenger_that_wins_is_challenger_no_more(workspace: Path, export: Path, tmp_path: Path) -> None:
    client = client_of(workspace)
    client.create_registered_model("hand")
    for value in (1.8, 1.7):
        low, high = str(value - 0.02), str(value + 0.02)
        tags = {"bits_per_byte": str(value), "bits_per_byte_low": low, "bits_per_byte_high": high, "eval_sha256": "e1"}
        client.create_model_version("hand", (tmp_path / "any").as_uri(), tags=tags)
    client.set_registered_model_alias("hand", "champion", "1")
    client.set_registered_model_alias("hand", "challenger", "2")
    outcome = apply_rule(client, client.get_model_version("hand", "2"))
    assert outcome.champion and "without the losses of both by document" in outcome.reason
    assert {name: str(at) for name, at in client.get_registered_model("hand").aliases.items()} == {"champion": "2"}


def test_a_champion_chosen_by_hand_without_figures_is_not_replaced(
    workspace: Path, export: Path, tmp_path: Path
) -> None:
    client = client_of(workspace)
    client.create_registered_model("bare")
    client.create_model_version("bare", (tmp_path / "any").as_uri())
    client.set_registered_model_alias("bare", "champion", "1")
    assert apply_rule(client, client.get_model_version("bare", "1")).reason == "chosen by hand"
    client.create_model_version("bare", (tmp_path / "any").as_uri(), tags={"bits_per_byte": "1", "eval_sha256": "e"})
    outcome = apply_rule(client, client.get_model_version("bare", "2"))
    assert not outcome.champion and "was measured on other text (unknown" in outcome.reason


def test_a_kill_between_tag_and_alias_leaves_the_decision_to_be_made_again() -> None:
    tags = [ModelVersionTag("bits_per_byte", "1.7"), ModelVersionTag("eval_sha256", "e1")]
    version = ModelVersion("rules", "1", 0, source="", run_id="", tags=tags)
    client = Mock()
    client.get_registered_model.return_value.aliases = {}
    client.download_artifacts.side_effect = OSError
    client.set_registered_model_alias.side_effect = KeyboardInterrupt  # the process ends here
    with pytest.raises(KeyboardInterrupt):
        apply_rule(client, version)
    client.set_model_version_tag.assert_called_once_with(
        "rules", "1", "promotion", "champion: the first, with 1.7000 bits per byte"
    )
    client.set_registered_model_alias.side_effect = None
    assert apply_rule(client, version).champion
