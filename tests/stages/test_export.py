"""The export on a real checkpoint: the folder, its manifest and its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stages.entry import file_sha256
from stages.errors import BadInput
from stages.first_weights import tokenizer_problem
from tests.stages.exports import OUTER_SETTINGS, SMALL, TEXTS, copy_inputs, exported, written


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTER_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_transformers_computes_what_the_checkpoint_computes(export: Path) -> None:
    metrics = json.loads((export / "metrics.json").read_text())
    assert metrics["hf_max_diff"] < 1e-5
    assert metrics["hf_tokens"] > 60 and metrics["hf_greedy_tokens"] > 20


def test_the_folder_works_in_the_hands_of_a_user(export: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export / "hf")
    model = AutoModelForCausalLM.from_pretrained(export / "hf")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer("Returns").input_ids[0] == 0
    assert tokenizer.decode(tokenizer(TEXTS[1]).input_ids, skip_special_tokens=True) == TEXTS[1]
    inputs = tokenizer(["Returns", "A sparse array"], padding=True, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 2


def test_its_tokenizer_counts_as_that_of_the_data_for_who_starts_from_it(workspace: Path, export: Path) -> None:
    assert tokenizer_problem(export / "hf", workspace / "data/tokenizer/tokenizer.json") is None


def test_the_manifest_names_every_file_by_its_content(export: Path) -> None:
    manifest = json.loads((export / "manifest.json").read_text())
    assert manifest["architecture"] == "Qwen3ForCausalLM"
    there = {path.relative_to(export).as_posix() for path in export.glob("*/*")}
    assert {entry["file"] for entry in manifest["files"]} == there
    for entry in manifest["files"]:
        assert hashlib.sha256((export / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_the_card_has_the_figures_and_the_baselines_and_no_more(export: Path) -> None:
    card = (export / "hf" / "README.md").read_text()
    assert "| this model | 1.712 | 1.690 to 1.730 |" in card
    assert card.index("trigram over the same tokens") < card.index("bigram over the same tokens")
    assert "`Qwen3ForCausalLM`, because of pre_norm and qk_norm (head)." in card
    assert "| `hidden_size` | 32 |" in card
    assert "    Returns| the\n    number\n" in card
    assert file_sha256(export / "hf" / "model.safetensors") in card


def test_equal_inputs_give_equal_bytes(workspace: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("here", "there"):
        copy_inputs(workspace, tmp_path / name)
        job, _ = written(tmp_path / name, SMALL)
        contents.append({path.name: path.read_bytes() for path in (job.staging / "hf").iterdir()})
    assert contents[0] == contents[1]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_a_damaged_checkpoint_and_a_foreign_tokenizer_are_named(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    tokenizer = tmp_path / "data/tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(BadInput, match=r"tokenizer\.json: sha256 .* but the checkpoint was trained with"):
        exported(tmp_path)
    weights = tmp_path / "data/train/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BadInput, match=r"model\.safetensors: differs from its checksum"):
        exported(tmp_path)
