"""First weights: what fits is taken tensor by tensor, and a tokenizer must be the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.first_weights import differences
from tests.stages.weight_folders import (
    EXPERTS,
    GEMMA,
    GPT2,
    HYBRID,
    PLAIN,
    VOCABULARY,
    drawn,
    export_folder,
    load,
    problem_in_code,
)

pytestmark = pytest.mark.usefixtures("outside_of_dvc")


@pytest.mark.parametrize(
    ("config", "own"),
    [(PLAIN, False), (GPT2, False), (GEMMA, False), (HYBRID, True), (EXPERTS, True), (PLAIN, True)],
    ids=["qwen3", "gpt2", "gemma3", "own hybrid", "own experts", "own plain"],
)
def test_every_tensor_is_that_of_the_folder(tmp_path: Path, config: ModelConfig, own: bool) -> None:
    decoder = drawn(config)
    start = export_folder(tmp_path / "theirs", decoder, own)
    assert problem_in_code(start, tmp_path) == ""
    loaded, wanted = load(start, tmp_path), decoder.state_dict()
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        n = VOCABULARY if name in ("embedding.weight", "head.weight") else len(tensor)
        torch.testing.assert_close(loaded[name][:n], tensor[:n], msg=name)
        assert not loaded[name][n:].any()


WORDS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}],
}


def write_tokenizer(path: Path, merges: list[Any], shift: int = 0, **steps: Any) -> str:
    vocabulary = {f"t{i}": i + (shift if i > 40 else 0) for i in range(2, VOCABULARY)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    special = [{"id": 0, "content": "<|endoftext|>"}, {"id": 1, "content": "<|pad|>"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": model, "added_tokens": special, **steps})
    return file_sha256(path)


def test_rows_beyond_the_tokenizer_are_padding_where_the_tokenizer_is_the_same(tmp_path: Path) -> None:
    """As Qwen3's: 151,936 rows for 151,669 ids. Also where merges are written in the older way, as one text."""
    decoder = drawn(PLAIN, 64)
    start = export_folder(tmp_path / "theirs", decoder)
    with pytest.raises(BadInput, match="config.json: a vocabulary of 64, the packed data have one of 61; name"):
        load(start, tmp_path)
    sha256 = write_tokenizer(tmp_path / "data/tokenizer/tokenizer.json", [["a", "b"], ["c", "d"]])
    write_tokenizer(tmp_path / "theirs/tokenizer.json", ["a b", "c d"])
    loaded = load(start, tmp_path, sha256)["embedding.weight"]
    assert torch.equal(loaded[:VOCABULARY], decoder.embedding.weight[:VOCABULARY])
    assert not loaded[VOCABULARY:].any()
    with pytest.raises(BadInput, match="data/tokenizer/tokenizer.json is not the one of the packed data; run"):
        load(start, tmp_path, "0" * 64)


def test_a_vocabulary_that_is_too_small_is_refused_with_its_tokenizer_beside(tmp_path: Path) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN, 60))
    sha256 = write_tokenizer(tmp_path / "data/tokenizer/tokenizer.json", [])
    write_tokenizer(tmp_path / "theirs/tokenizer.json", [])
    with pytest.raises(BadInput, match="config.json: a vocabulary of 60, the packed data have one of 61"):
        load(start, tmp_path, sha256)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"merges": [["a", "b"], ["d", "c"]]}, "merge 1 is 'd c' there and 'c d' in"),
        ({"merges": [["a", "b"]]}, "1 merges there and 2 in"),
        ({"merges": [["a", "b"], ["c", "d"]], "shift": 3}, "token 't41' has 44 there and 41 in"),
        ({"merges": [["a", "b"], ["c", "d"]], "normalizer": {"type": "NFC"}}, "its normalizer is not the one in"),
        ({"merges": [["a", "b"], ["c", "d"]], "pre_tokenizer": WORDS}, "its pre_tokenizer is not the one in"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    sha256 = write_tokenizer(tmp_path / "data/tokenizer/tokenizer.json", [["a", "b"], ["c", "d"]])
    write_tokenizer(tmp_path / "theirs/tokenizer.json", **change)
    with pytest.raises(BadInput, match=f"params.yaml: execution.init_from: .*theirs: tokenizer.json: .*: {problem}"):
        load(start, tmp_path, sha256)
    assert problem_in_code(start, tmp_path) == "", "without a tokenizer.file it is not there yet"
    assert re.search(
        f"^execution.init_from: .*theirs: tokenizer.json: {problem}",
        problem_in_code(start, tmp_path, given="data/tokenizer/tokenizer.json"),
    )


def test_the_same_tokenizer_in_another_form_is_fine(tmp_path: Path) -> None:
    """As older and newer versions of tokenizers write it."""
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    given = "data/tokenizer/tokenizer.json"
    write_tokenizer(tmp_path / given, [["a", "b"]], normalizer=None, pre_tokenizer=WORDS)
    alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    write_tokenizer(tmp_path / "theirs/tokenizer.json", ["a b"], pre_tokenizer=alone)
    assert problem_in_code(start, tmp_path, given=given) == ""


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    start = export_folder(tmp_path / "theirs", drawn(PLAIN))
    sha256 = write_tokenizer(tmp_path / "data/tokenizer/tokenizer.json", [])
    for content in ("{", '{"model": 3}', "[]"):
        (tmp_path / "theirs/tokenizer.json").write_text(content)
        with pytest.raises(BadInput, match=r"execution.init_from: .*theirs: tokenizer.json: "):
            load(start, tmp_path, sha256)


@pytest.mark.parametrize(
    ("ours", "theirs", "lines"),
    [
        ({"n_layers": 2}, {"n_layers": 3}, ["model.n_layers=3"]),
        ({"layer_pattern": "full,full"}, {"layer_pattern": "full"}, []),
        ({"layer_pattern": "swa,full"}, {"n_layers": 4, "layer_pattern": "swa,full"}, ["model.n_layers=4"]),
        (
            {"n_layers": 4, "layer_pattern": "swa*3+full"},
            {"n_layers": 3, "layer_pattern": "swa*2+full"},
            ["model.n_layers=3", "model.layer_pattern=swa*2+full"],
        ),
        ({"mlp": "geglu"}, {"mlp": "swiglu"}, ["model.mlp=swiglu"]),
    ],
)  # fmt: skip
def test_the_lines_to_set_hold_what_differs_and_no_comma(ours: dict, theirs: dict, lines: list[str]) -> None:
    assert differences(dataclasses.replace(PLAIN, **ours), dataclasses.replace(PLAIN, **theirs)) == lines
