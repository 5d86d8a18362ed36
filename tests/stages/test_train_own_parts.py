"""Classes of one's own that do not work end in one line, with the param, the class and the place."""

import dataclasses
import json
import sys

import pytest

import model
from stages.errors import BadInput
from tests.stages.test_train import EXECUTION, MODEL
from tests.stages.test_train_family import train_model

PART = """from torch import nn

class Part(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.layer = nn.Linear({size}, {size}, bias=False)

    def forward(self, x{context}):
        return self.layer(x)
"""
KINDS = {
    "norm": {"arguments": "size, eps", "size": "size", "context": ""},
    "mlp": {"arguments": "config", "size": "config.hidden_size", "context": ""},
    "layer_pattern": {"arguments": "config", "size": "config.hidden_size", "context": ", context"},
}


@pytest.fixture
def trained(packed, tmp_path, monkeypatch):
    """Trains three steps with a class Part of this code."""
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(tmp_path)])

    def train(kind, code, **changes):
        (tmp_path / "mine.py").write_text(code)
        config = dataclasses.replace(MODEL, **{kind: "model.mine.Part"})
        return train_model(packed, config, EXECUTION.model_copy(update=changes), max_steps=3)

    yield train
    sys.modules.pop("model.mine", None)
    vars(model).pop("mine", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_works_trains(trained, kind):
    out = trained(kind, PART.format(**KINDS[kind]))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 3 and metrics["validation_loss"] is not None


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("from torch", "import nowhere_to_be_found\nfrom torch", "1: ModuleNotFoundError: No module named"),
        ("class Part", "class Other", "AttributeError: module 'model.mine' has no attribute 'Part'"),
        ("        self.layer", "        raise KeyError('a\\nb')\n        self.layer", r"6: KeyError: 'a\\nb'"),
        ("return self.layer(x)", "return x + nothing", "9: NameError: name 'nothing' is not defined"),
        ("{size}, bias", "1, bias", r"its forward makes \[1, 16, 1\] of \[1, 16, 32\]; it must give back the size"),
        ("return self.layer(x)", "return x, x", r"its forward makes tuple of \[1, 16, 32\]"),
    ],
    ids=["import", "name", "constructor", "forward", "width", "two"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_does_not_is_refused_before_training(trained, kind, old, new, problem):
    code = PART.replace(old, new).format(**KINDS[kind])
    with pytest.raises(BadInput, match=rf"^params.yaml: model.{kind}: model.mine.Part: .*{problem}") as error:
        trained(kind, code)
    assert "\n" not in str(error.value)


def test_a_parameter_that_takes_no_part_in_the_loss_is_named(trained):
    code = PART.format(**KINDS["mlp"]).replace("self.layer =", "self.idle = nn.Linear(2, 2)\n        self.layer =")
    with pytest.raises(BadInput, match="does not depend on the parameter blocks.0.mlp.idle.weight of a part of yours"):
        trained("mlp", code)
