"""The export on a real checkpoint: the folder, its manifest and its card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from model.config import ModelConfig
from stages.code.combinations import exportable
from stages.errors import BadInput
from stages.export.folder import write_tokenizer as write_hf_tokenizer
from stages.export.params import ExportParams
from stages.export.stage import NOT_ASKED_FOR
from stages.export.variants import TooLossy, Variant, compared, judge
from stages.files import file_sha256
from stages.first_weights import tokenizer_problem
from stages.quantised import METHODS, open_quantised
from tests.stages.exports import OUTER_SETTINGS, SMALL, TEXTS, copy_inputs, exported, write_tokenizer, written


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


def test_each_format_stands_by_itself_and_says_what_it_is_worth(export: Path) -> None:
    metrics = json.loads((export / "metrics.json").read_text())
    assert metrics["onnx_max_diff"] < 1e-4 and metrics["onnx_greedy_tokens"] == metrics["hf_greedy_tokens"]
    assert all(0.9 < metrics[f"{name}_perplexity_ratio"] < 1.005 for name in ("int8", "int8_dynamic"))
    assert 0.9 < metrics["int4_perplexity_ratio"] < 1.03
    assert metrics["gguf_bytes"] == sum((export / f"gguf/model-{kind}.gguf").stat().st_size for kind in ("f16", "q8_0"))
    variants = json.loads((export / "manifest.json").read_text())["variants"]
    for name in METHODS:
        assert variants[name]["low"] <= variants[name]["ratio"] <= variants[name]["high"]
        assert open_quantised(export / name).vocab_size == 300
        table = (export / name / "matrices.csv").read_text().splitlines()
        assert table[0].startswith("matrix,bits,group_size") and table[1].startswith("embedding.weight,8,")
        assert f"| `{name}` |" in (export / "hf/README.md").read_text()
    for name in ("onnx", *METHODS):
        assert (export / name / "tokenizer.json").read_bytes() == (export / "hf/tokenizer.json").read_bytes()
    assert set(json.loads((export / "timing.json").read_text())) == {f"{n}_tokens_per_s" for n in ("fp32", *variants)}


def test_a_variant_that_loses_too_much_fails_by_its_name() -> None:
    variant = Variant("int4", 1000, 0.28, perplexity=54.0, ratio=1.04, low=1.03, high=1.05)
    judge(variant, 1.04)
    with pytest.raises(TooLossy, match=r"data/export/int4: .* 1\.0400 of fp32's, over export\.max_int4_perplexity_rat"):
        judge(variant, 1.03)
    with pytest.raises(TooLossy, match=r"export\.max_int8_perplexity_ratio 1\.03; leave int8_dynamic out"):
        judge(dataclasses.replace(variant, name="int8_dynamic"), 1.03)
    with pytest.raises(TooLossy):
        judge(dataclasses.replace(variant, ratio=float("nan")), 1.03)


def test_a_ratio_is_that_of_all_tokens_and_its_interval_is_paired() -> None:
    before, labels = np.array([10.0, 400.0, 3.0]), np.array([10, 100, 1])
    perplexity, ratio, low, high = compared(before, before + 0.01 * labels, labels)
    assert ratio == low == high == pytest.approx(math.exp(0.01), abs=1e-6)
    assert perplexity == pytest.approx(math.exp(413 / 111 + 0.01), abs=1e-5)


def test_onnx_and_a_class_of_ones_own_are_refused_together() -> None:
    own = ModelConfig(n_layers=2, layer_pattern="model.shift.TokenShift,full")
    [(keys, told)] = exportable({"model": own, "export": ExportParams()})
    assert keys == ["export", "formats"]
    assert told == "onnx has no nodes for model.shift.TokenShift, a class of yours; leave onnx out of the list"
    assert not list(exportable({"model": own, "export": ExportParams(formats=["hf", "int8"])}))
    assert not list(exportable({"model": ModelConfig(), "export": ExportParams()}))


@pytest.mark.parametrize(("tokens", "wanted"), [((), False), (("<|im_start|>", "<|im_end|>"), True)])
def test_a_chat_template_where_the_tokenizer_has_turns(tmp_path: Path, tokens: tuple[str, ...], wanted: bool) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path / "data" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "data/tokenizer.json"))
    tokenizer.add_special_tokens(list(tokens))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "hf").mkdir()
    write_hf_tokenizer(tmp_path / "hf", tmp_path / "tokenizer.json", 32)
    assert (tmp_path / "hf/chat_template.jinja").is_file() == wanted


def test_equal_inputs_give_equal_bytes(workspace: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("here", "there"):
        copy_inputs(workspace, tmp_path / name)
        job, _ = written(tmp_path / name, SMALL)
        contents.append({path.name: path.read_bytes() for path in (job.staging / "hf").iterdir()})
        assert [path.read_text() for path in (job.staging / "gguf").iterdir()] == [NOT_ASKED_FOR.format("gguf")]
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
