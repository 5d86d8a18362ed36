"""The attention that docs/model.md shows trains in a decoder, and its code is an input of the stages that use it."""

import re
import sys
from pathlib import Path

import pytest
import torch

import model
from model.config import ModelConfig
from model.decoder import Decoder
from model.sampling import Sampling, generate
from stages.code.combinations import built_in_parts
from stages.code.parts import own_modules
from stages.code.stage import fingerprint
from stages.errors import BadInput
from stages.fingerprint.imports import Project
from stages.params import ParamsFile

REPOSITORY = Path(__file__).parents[2]
SHOWN = re.search(r"```python\n# model/shift.py\n(.+?)```", (REPOSITORY / "docs/model.md").read_text(), re.DOTALL)
PATTERN = "model.shift.TokenShift+full"


@pytest.fixture
def shift(tmp_path, monkeypatch):
    (tmp_path / "shift.py").write_text(SHOWN[1])
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(tmp_path)])
    yield
    sys.modules.pop("model.shift", None)


def test_it_trains_beside_the_built_in_kinds(shift):
    decoder = Decoder(ModelConfig(n_layers=2, hidden_size=16, n_heads=2, n_kv_heads=1, layer_pattern=PATTERN), 40)
    decoder.initialise(torch.Generator().manual_seed(0))
    row = torch.arange(24).remainder(7)[None]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(decoder(row[:, :-1])[0], row[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    segments, positions = torch.tensor([[0] * 5 + [1] * 7]), torch.tensor([[*range(5), *range(7)]])
    together, alone = decoder(row[:, :12], segments, positions)[:, 5:], decoder(row[:, 5:12])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not decoder.has_caches
    assert generate(decoder.eval(), [[0, 1, 2]], 4, 24, 99, Sampling(temperature=0), 0) == [[3, 4, 5, 6]]


@pytest.fixture
def params(tmp_path) -> ParamsFile:
    text = re.sub(r"layer_pattern: auto", f"layer_pattern: {PATTERN}", (REPOSITORY / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    return ParamsFile(tmp_path / "params.yaml")


def copied(tmp_path: Path, shift: str) -> Project:
    for folder in ("model", "stages"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            target = tmp_path / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "model/shift.py").write_text(shift)
    return Project(tmp_path)


def test_an_edit_in_it_retrains_and_changes_no_data_stage(tmp_path, params):
    config = ModelConfig(layer_pattern=PATTERN)
    digests = []
    for code in (SHOWN[1], SHOWN[1].replace("> 0", "> 1")):
        project = copied(tmp_path, code)
        own = own_modules(params, project, config)
        assert own == ["model.shift"]
        digests.append(
            {stage: fingerprint(project, stage, own)["digest"] for stage in ("pack", "train", "evaluate", "export")}
        )
    assert [stage for stage in digests[0] if digests[0][stage] != digests[1][stage]] == ["train", "evaluate", "export"]


def test_a_part_that_is_not_there_is_refused_with_its_line(tmp_path, params):
    project = Project(REPOSITORY)
    with pytest.raises(BadInput, match=r"params.yaml:\d+: model.layer_pattern: .*there is no model/shift.py"):
        own_modules(params, project, ModelConfig(layer_pattern=PATTERN))
    project = copied(tmp_path, "class Other: pass")
    with pytest.raises(BadInput, match="model/shift.py has no class TokenShift; it has Other"):
        own_modules(params, project, ModelConfig(layer_pattern=PATTERN))


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"norm": "rmsnrom"}, "norm", "'rmsnrom' is unknown; did you mean rmsnorm?"),
        ({"mlp": "silu"}, "mlp", "'silu' is unknown; did you mean swiglu?"),
        ({"layer_pattern": "full+slow"}, "layer_pattern", "'slow' is unknown; there are full, swa, mla"),
    ],
)
def test_names_that_mean_nothing_are_refused_before_any_work(changes, key, problem):
    found = list(built_in_parts({"model": ModelConfig(**changes)}))
    assert found[0][0] == ["model", key] and problem in found[0][1]
