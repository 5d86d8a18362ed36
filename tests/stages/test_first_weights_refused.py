"""First weights that cannot be meant are refused in one line, by the stage `code` where it can tell."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from stages.entry import plain
from stages.errors import BadInput
from stages.files import write_json
from stages.weights_file import CHUNK, first_not_finite, read_header
from tests.stages.weight_folders import (
    CONTEXT,
    GEMMA,
    GPT2,
    HYBRID,
    OTHER,
    PLAIN,
    drawn,
    export_folder,
    load,
    problem_in_code,
    started,
)

pytestmark = pytest.mark.usefixtures("outside_of_dvc")


def set_keys(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **values}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another header before the same bytes."""

    def rewrite(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + length])
        change(described)
        text = json.dumps(described).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return rewrite


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return rewrite


OWN_NORM = "decoder.final_norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (write("config.json", b"{"), "config.json: not valid JSON"),
        (write("config.json", b"\xff\xfe{"), "config.json: byte 0 is not UTF-8; download or export it again"),
        (write("config.json", b"[1]"), "config.json: holds no object"),
        (set_keys(model_type="bloom"), "config.json: model_type is bloom; known are llama"),
        (set_keys(hidden_size=None), "config.json: hidden_size is null; it must be an integer of at least 1"),
        (set_keys(num_attention_heads=0), "config.json: num_attention_heads is 0; it must be"),
        (set_keys(hidden_size="64"), "config.json: hidden_size is '64'; it must be"),
        (set_keys(num_hidden_layers=10**9), "config.json: num_hidden_layers is 1000000000; it must be"),
        (set_keys(layer_types=3), "config.json: layer_types is 3; it must be a list of texts"),
        (set_keys(rope_parameters=[1]), r"config.json: rope_parameters is \[1\]; it must be an object"),
        (set_keys(vocab_size="61"), "config.json: vocab_size is '61'"),
        (set_keys(num_hidden_layers=3, layer_types=["full_attention"] * 3), "architecture; set model.n_layers=3"),
        (write("model.safetensors", b""), "model.safetensors: is cut off or no file of safetensors"),
        (write("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "model.safetensors: holds no tensor"),
        (write("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"), "model.safetensors: its header is damaged"),
        (cut, r"model.safetensors: has [\d,]+ bytes of [\d,]+; download"),
        (header(lambda h: h[QUERY].update(shape=[32, -32])), "model.safetensors: its header is damaged"),
        (header(lambda h: h[QUERY].update(shape=[32, 31])), rf"model.safetensors: {QUERY}, F32 \[32, 31\], lies at"),
        (header(lambda h: h[QUERY].update(data_offsets=[0, 4096])), "model.safetensors: .*, lies at .* not where"),
        (header(lambda h: h.pop(QUERY)), "model.safetensors: .*, lies at bytes .* not its size or not where the one"),
        (header(lambda h: h[QUERY].update(data_offsets=[9, 1])), "model.safetensors: its header is damaged"),
        (tensors(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})), f"model.safetensors: {QUERY} is I8; weights"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_by_the_stage_code_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], problem: str
) -> None:
    export_folder(tmp_path / "theirs", drawn(PLAIN))
    damage(tmp_path / "theirs")
    start = started(PLAIN, tmp_path / "theirs")
    with pytest.raises(BadInput, match=f"^params.yaml: execution.init_from: {tmp_path}/theirs.*{problem}") as error:
        load(start, tmp_path)
    assert "\n" not in str(error.value)
    assert problem_in_code(start, tmp_path) == str(error.value).removeprefix("params.yaml: ")


def test_other_weights_than_those_meant_are_refused_by_the_stage_code(tmp_path: Path) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    found = problem_in_code(dataclasses.replace(start, init_sha256=OTHER), tmp_path)
    assert found.startswith("model.init_sha256: ") and f"has sha256 {start.init_sha256}, not {OTHER}" in found
    shutil.rmtree(tmp_path / "theirs")
    assert "config.json is not there" in problem_in_code(start, tmp_path)


def test_of_folder_and_sha256_neither_goes_without_the_other(tmp_path: Path) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    assert problem_in_code(PLAIN, tmp_path, "") == ""
    assert problem_in_code(PLAIN, tmp_path) == (
        f"model.init_sha256: is empty; to start from {tmp_path}/theirs set it to {start.init_sha256}, "
        "else set execution.init_from to ''"
    )
    assert problem_in_code(start, tmp_path, "") == (
        "model.init_sha256: names first weights, and no checkpoint goes on from them; "
        "set execution.init_from to their folder"
    )


def test_the_sha256_is_read_in_any_case_and_is_one() -> None:
    assert dataclasses.replace(PLAIN, init_sha256=f" {OTHER.upper()}\n").init_sha256 == OTHER
    for wrong in ("abc", OTHER[1:], f"{OTHER}0", "g" * 64):
        with pytest.raises(ValueError, match="init_sha256 is .*; it must be the 64 hexadecimal digits of the sha256"):
            dataclasses.replace(PLAIN, init_sha256=wrong)


@pytest.mark.parametrize("place", ["data/train/last", ".dvc/tmp/millrace/train/0123456789abcdef/step-00000000"])
def test_where_a_training_has_begun_the_folder_is_needed_no_more(tmp_path: Path, place: str) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    (tmp_path / place).mkdir(parents=True)
    write_json(tmp_path / place / "config.json", {"model": plain(start)})
    shutil.rmtree(tmp_path / "theirs")
    assert problem_in_code(start, tmp_path) == problem_in_code(start, tmp_path, "") == ""
    other = dataclasses.replace(start, n_layers=3)  # whose training would have to start
    assert problem_in_code(other, tmp_path, "").startswith("model.init_sha256: names first weights, and no checkpoint")


def test_a_relative_folder_begins_in_the_main_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where DVC runs the stage in a temporary copy."""
    start = export_folder(tmp_path / "main/theirs", drawn(PLAIN))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert problem_in_code(start, tmp_path / "main/.dvc/tmp/exps/tmp1") == ""
    load(start, tmp_path / "main/.dvc/tmp/exps/tmp1")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda t: t.update({QUERY: t[QUERY][:, :-1].contiguous()}), rf"{QUERY} is \[32, 31\]; by config.json it is"),
        (lambda t: t.update({QUERY: t[QUERY] * float("nan")}), f"{QUERY} holds values that are not finite"),
        (lambda t: t.pop(QUERY), f"{QUERY} is missing"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight is \[3\]; by config.json it is"),
        (lambda t: t.update({"model.norm.weight": torch.ones(())}), r"model.norm.weight is \[\]; by config.json"),
    ],
)
@pytest.mark.parametrize("config", [PLAIN, GEMMA], ids=["qwen3", "gemma3"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, config: ModelConfig, damage: Any, problem: str) -> None:
    export_folder(tmp_path / "theirs", drawn(config))
    tensors(damage)(tmp_path / "theirs")
    start = started(config, tmp_path / "theirs")
    with pytest.raises(
        BadInput, match=f"^params.yaml: execution.init_from: .*theirs: model.safetensors: {problem}"
    ) as error:
        load(start, tmp_path)
    assert problem_in_code(start, tmp_path) == str(error.value).removeprefix("params.yaml: ")


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_no_number_is_found(tmp_path: Path, kind: torch.dtype, value: float) -> None:
    whole = {"a": torch.zeros(7, dtype=kind), "b": torch.full((CHUNK,), torch.finfo(kind).max, dtype=kind)}
    save_file(whole, tmp_path / "whole")
    assert first_not_finite(tmp_path / "whole", read_header(tmp_path / "whole")) is None
    whole["b"][-1] = value
    save_file(whole, tmp_path / "broken")
    assert first_not_finite(tmp_path / "broken", read_header(tmp_path / "broken")) == "b"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (set_keys(model=3), "config.json: model holds no object"),
        (set_keys(model={"n_layers": "two"}), "config.json: model.n_layers: Input should be a valid integer"),
        (set_keys(model={"n_layer": 2}), "config.json: model.n_layer: Extra inputs are not permitted"),
        (set_keys(model={"n_layers": 5}), "is another architecture; set model.n_layers=5"),
        (set_keys(context_length="x"), "config.json: context_length is 'x'"),
        (tensors(lambda t: t.pop(OWN_NORM)), f"{OWN_NORM} is missing"),
        (tensors(lambda t: t.update({OWN_NORM: torch.ones(3)})), rf"{OWN_NORM} is \[3\]; by config.json it is \[32\]"),
    ],
)  # fmt: skip
def test_a_damaged_export_of_our_own_is_refused(tmp_path: Path, damage: Callable[[Path], None], problem: str) -> None:
    export_folder(tmp_path / "theirs", drawn(HYBRID), own=True)
    damage(tmp_path / "theirs")
    with pytest.raises(BadInput, match=f"^params.yaml: execution.init_from: {tmp_path}/theirs.*{problem}"):
        load(started(HYBRID, tmp_path / "theirs"), tmp_path)


def test_a_folder_that_the_stages_write_anew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = export_folder(tmp_path / "data/export/hf", drawn(PLAIN))
    assert problem_in_code(start, tmp_path / "elsewhere", str(tmp_path / "data/export/hf")) == ""
    refusal = f"execution.init_from: {tmp_path}/data/export/hf lies in data/, which the stages write anew; copy"
    assert problem_in_code(start, tmp_path, "data/export/hf").startswith(refusal)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert problem_in_code(start, tmp_path / "elsewhere", "data/export/hf").startswith(refusal)


def test_fewer_learned_positions_than_the_rows_are_long_are_refused(tmp_path: Path) -> None:
    start = export_folder(tmp_path / "theirs", drawn(GPT2))
    problem = "16 learned positions; set pack.context_length, which is 17, to at most that"
    with pytest.raises(BadInput, match=problem):
        load(start, tmp_path, n=CONTEXT + 1)
    assert problem in problem_in_code(start, tmp_path, n=CONTEXT + 1)
