"""An export is held against its checkpoint before it is published: as a twin, with its own code, and when wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.export import check
from stages.export.card import model_card
from stages.export.proof import Mismatch
from tests.stages.exports import OUTER_SETTINGS, SMALL, copy_inputs, exported, written


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTER_SETTINGS:
        monkeypatch.delenv(name, raising=False)


def proof(root: Path, folder: Path) -> dict:
    data = root / "data"
    sides = [folder, "", data / "train/best", data / "tokenizer/tokenizer.json", data / "pack/test"]
    return check.check(check.Request(*map(str, sides), documents=3, new_tokens=8, max_difference=1e-4, threads=0))


def test_the_ablation_of_the_default_is_a_gemma3_and_proven(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, dataclasses.replace(SMALL, post_norm=True))
    assert facts.class_name == "Gemma3ForCausalLM"
    compared = proof(tmp_path, job.staging / "hf")
    assert compared["problems"] == [] and compared["difference"] < 1e-5 and compared["documents"] == 3


OWN = {
    "hybrid": {"layer_pattern": "swa,mla", "window": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
               "qk_rope_head_dim": 4, "v_head_dim": 8},
    "experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 16},
    "dyt": {"norm": "dyt", "mlp": "relu2", "positions": "sinusoidal", "logit_softcap": 5.0},
}  # fmt: skip


def test_logits_that_are_not_numbers_are_seen_in_every_document() -> None:
    fine, broken = torch.zeros(2, 4), torch.full((2, 4), float("nan"))
    _, problems = check.compare_logits("onnx", [fine, fine], [broken, fine], 1e-4)
    assert problems == ["onnx: logits of test document 0 are not finite"]


@pytest.mark.parametrize("kind", OWN)
def test_what_transformers_does_not_have_goes_with_its_own_code(workspace: Path, tmp_path: Path, kind: str) -> None:
    """Opened by transformers in another process that has this project's modules nowhere in its path."""
    copy_inputs(workspace, tmp_path)
    job, facts = written(tmp_path, dataclasses.replace(SMALL, **OWN[kind]))
    assert facts.class_name == "MillraceForCausalLM"
    sentence = "`MillraceForCausalLM`, because of the lack of an architecture of transformers that computes the same."
    assert sentence in model_card("millrace", facts, [])
    compared = proof(tmp_path, job.staging / "hf")
    assert compared["problems"] == [] and compared["difference"] < 1e-5
    program = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "options = {'trust_remote_code': True}\n"
        "model, loading = AutoModelForCausalLM.from_pretrained('hf', output_loading_info=True, **options)\n"
        "tokenizer = AutoTokenizer.from_pretrained('hf', **options)\n"
        "batch = tokenizer(['a b', 'c'], padding=True, return_tensors='pt')\n"
        "print(model.generate(**batch, max_new_tokens=3, do_sample=False).shape)\n"
        "assert not any(name.split('.')[0] in ('model', 'stages') for name in sys.modules), 'the export stands alone'\n"
        "assert not loading['missing_keys'] and not loading['unexpected_keys'], loading"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=job.staging, env=environment, check=True, capture_output=True)


def test_the_proof_sees_other_weights(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    job, _ = written(tmp_path, SMALL)
    folder = job.staging.rename(tmp_path / "kept") / "hf"
    written(tmp_path, SMALL, seed=1)
    problems = proof(tmp_path, folder)["problems"]
    assert problems[0].startswith("hf: logits differ by") and "test document" in problems[0]
    assert problems[1].startswith("hf: perplexity is")
    assert problems[2].startswith("hf: greedy text of test document 0 differs at token")


def test_the_proof_sees_a_missing_tensor_and_another_tokenizer(workspace: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy_inputs(workspace, tmp_path)
    job, _ = written(tmp_path, SMALL)
    weights = load_file(job.staging / "hf/model.safetensors")
    weights["model.layers.0.extra.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, job.staging / "hf/model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((job.staging / "hf/tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (job.staging / "hf/tokenizer.json").write_text(json.dumps(tokenizer))
    problems = proof(tmp_path, job.staging / "hf")["problems"]
    assert "hf: missing_keys: model.layers.1.mlp.up_proj.weight" in problems
    assert "hf: unexpected_keys: model.layers.0.extra.weight" in problems
    assert "hf: the exported tokenizer gives other ids than ours for test document 0" in problems


@pytest.mark.slow
def test_what_differs_is_not_published(workspace: Path, tmp_path: Path) -> None:
    copy_inputs(workspace, tmp_path)
    written(tmp_path, dataclasses.replace(SMALL, post_norm=True))
    with pytest.raises(Mismatch, match=r"logits differ by .*, over 1e-12, in test document \d at token \d+; nothing"):
        exported(tmp_path, max_difference=1e-12)
    assert not (tmp_path / "data" / "export").exists()
