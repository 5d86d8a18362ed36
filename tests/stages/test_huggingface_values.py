"""A config.json with any value under any key is read or refused in one line, never an accident of arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from stages.errors import BadInput
from stages.huggingface_config import config_of, vocab_size_of
from tests.stages.twins import HUB, THEIRS

STRANGE: list[Any] = [
    None, 0, -1, "4", "", [1], {}, {"a": 1}, 3.5, True, 10**30, float("nan"), [], ["x"], [None],
    {"factor": "x"}, {"full_attention": 3}, {"rope_type": [1]}, {"rope_type": "yarn", "factor": "4"},
    {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": "x"},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": "x"},
    {"rope_type": "linear", "rope_theta": None, "factor": 2.0},
]  # fmt: skip
BESIDES = (
    "rope_parameters", "rope_scaling", "layer_types", "sliding_window_pattern", "query_pre_attn_scalar",
    "mlp_only_layers", "original_max_position_embeddings", "quantization_config", "model_type",
)  # fmt: skip
CASES = {name: {"model_type": name.split()[0], "vocab_size": 151, **given} for name, given in THEIRS.items()}
CASES |= {name: given for name, (given, _) in HUB.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_strange_value_is_read_or_refused_in_one_line(name: str) -> None:
    refused = 0
    for key in {*CASES[name], *BESIDES}:
        for value in STRANGE:
            given = {**CASES[name], key: value}
            try:
                config_of(given)
                vocab_size_of(given)
            except BadInput as error:
                assert str(error).startswith("config.json: ") and "\n" not in str(error)
                refused += 1
    assert refused > 100
