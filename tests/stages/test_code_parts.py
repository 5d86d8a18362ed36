"""Parts of one's own are judged by the stage `code`, before any work: what they import, and how they are made."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from model import config, parts
from model.config import ModelConfig
from model.mlp import ACTIVATIONS, GATES
from stages.code.parts import ARGUMENTS, BUILT_IN, own_modules
from stages.errors import BadInput
from stages.fingerprint.imports import Project
from stages.params import ParamsFile
from stages.portable import relative

ROOT = Path(__file__).parents[2]
PART = """
from torch import nn

class Part(nn.Module):
    def __init__(self, config):
        super().__init__()
"""


@pytest.fixture(scope="module")
def project_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name in ("model", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pipeline").mkdir()
    (root / "model/sub").mkdir()
    (root / "model/sub/__init__.py").touch()
    (root / "model/sub/x.py").write_text("y = 1\n")
    (root / "model/helper.py").write_text("import math\n")
    shutil.copy(ROOT / "params.yaml", root)
    return root


def judged(root: Path, code: str, **changes: str) -> list[str]:
    """The modules of a model with model/mine.py and, by default, its attention Part."""
    (root / "model/mine.py").write_text(code)
    model = ModelConfig(**(changes or {"layer_pattern": "model.mine.Part"}))
    return own_modules(ParamsFile(root / "params.yaml"), Project(root), model)


def refusal(root: Path, code: str, **changes: str) -> str:
    with pytest.raises(BadInput) as error:
        judged(root, code, **changes)
    return str(error.value)


@pytest.mark.parametrize(
    "statement",
    [
        "from model.norm import RMSNorm",
        "from .norm import RMSNorm",
        "from model.norm import (\n    RMSNorm,\n    DyT as Other,\n)",
        "def later():\n    from model.norm import RMSNorm",
        "import math, torch.nn.functional as F",
        "from collections import abc",
        "import numpy",
        '"""An example:\n\nimport model\nfrom model import norm\nfrom stages.entry import main\n"""',
        "from model.helper import math",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stages.entry import Job\n    import model",
        "import importlib\nimportlib.import_module('torch.nn')\nimportlib.import_module(name)",
        "def later():\n    import nowhere_to_be_found",
    ],
)
def test_what_an_export_can_take_along_is_fine(project_root: Path, statement: str) -> None:
    assert judged(project_root, f"{statement}\n{PART}") == ["model.mine"]


@pytest.mark.parametrize(
    "statement",
    [
        "import model",
        "import model.norm",
        "import math, model.norm",
        "from model import norm",
        "from model.sub.x import y",
        "from . import norm",
        "from .sub.x import y",
        "from .. import model",
        "import stages.entry",
        "from stages.entry import Job",
        "from pipeline import graph",
        "importlib.import_module('model.norm')",
        "importlib.import_module(name='model.norm')",
        "importlib.import_module('.norm', __package__)",
        "from importlib import import_module as load\nload('model.norm')",
        "load = importlib.import_module\nload('stages.entry')",
        "if TYPE_CHECKING:\n    import model\nelse:\n    import stages.entry",
        "if x:\n    import stages.entry",
        "if x: from model.norm import RMSNorm",
    ],
)
def test_an_import_that_an_export_could_not_follow_is_refused_with_its_line(project_root: Path, statement: str) -> None:
    line = 1 + statement.count("\n")
    text = statement.rpartition("\n")[2].strip().removeprefix("if x: ")
    message = refusal(project_root, f"{statement}\n{PART}")
    assert message.startswith("params.yaml:") and "model.layer_pattern: model.mine.Part: " in message
    assert f"model/mine.py:{line}: `{text}` cannot go with an export" in message
    assert message.endswith("write `from model.FILE import NAME` on a line of its own") and "\n" not in message


def test_so_is_one_in_a_file_that_the_part_imports(project_root: Path) -> None:
    helper = project_root / "model/helper.py"
    helper.write_text("import math\nfrom stages import entry\n")
    try:
        assert "model/helper.py:2: `from stages import entry`" in refusal(
            project_root, f"from model.helper import entry\n{PART}"
        )
    finally:
        helper.write_text("import math\n")


def test_a_package_that_is_not_installed_is_refused(project_root: Path) -> None:
    for statement in ("import nowhere_to_be_found.part", "from nowhere_to_be_found import part"):
        assert "model/mine.py:1: the package nowhere_to_be_found is not installed; install it" in refusal(
            project_root, f"{statement}\n{PART}"
        )


def test_a_file_that_is_not_there_is_named(project_root: Path) -> None:
    assert "model/mine.py:1: there is no model/nowhere.py" in refusal(
        project_root, f"from model.nowhere import f\n{PART}"
    )


def test_imports_become_relative_and_text_stays() -> None:
    code = '"""Like:\n\nfrom model.norm import é\n"""\nfrom model.norm import (\n    DyT,\n)\nx = "from model."\n'
    assert relative(code) == code.replace('"""\nfrom model.norm', '"""\nfrom .norm')


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"mlp": "model.mlp.GatedMLP"}, "model.mlp: model.mlp.GatedMLP is a part of Millrace; say swiglu or geglu"),
        ({"layer_pattern": "full+model.latent.LatentAttention"}, "is a part of Millrace; say mla"),
        ({"mlp": "model.experts.Experts"}, "say swiglu, and set n_experts"),
        ({"norm": "model.norm.DyT"}, "model.norm: model.norm.DyT is a part of Millrace; say dyt"),
        ({"mlp": "model.decoder.Block"}, "is a part of Millrace; a class of yours stands in a file of its own"),
    ],
)
def test_a_built_in_class_is_refused_with_its_name(project_root: Path, changes: dict[str, str], mend: str) -> None:
    assert mend in refusal(project_root, PART, **changes)


def test_the_names_of_built_in_parts_are_one_and_the_same_everywhere() -> None:
    tables = {"norm": parts.NORMS, "mlp": parts.MLPS, "layer_pattern": parts.ATTENTIONS}
    for table, names in ((parts.NORMS, config.NORMS), (parts.MLPS, config.MLPS), (parts.ATTENTIONS, config.ATTENTIONS)):
        assert tuple(table) == names
    assert tuple(GATES) == config.GATED and (*GATES, *ACTIVATIONS) == config.MLPS
    assert tables.keys() == ARGUMENTS.keys()
    said = {word.strip(",") for names in BUILT_IN.values() for word in names.split()}
    assert {*config.NORMS, *config.MLPS, *config.ATTENTIONS} <= said
    for name in BUILT_IN:
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), attribute), type)


def made(signature: str, base: str) -> str:
    return f"from torch import nn\nfrom model.mlp import GatedMLP, PlainMLP\n\nclass Part({base}):\n    {signature}\n"


@pytest.mark.parametrize(
    ("kind", "signature", "base"),
    [
        ("layer_pattern", "def __init__(self, config): ...", "nn.Module"),
        ("layer_pattern", "def __init__(self, config, width=0, *, bias=False): ...", "nn.Module"),
        ("mlp", "def __init__(self, *arguments, **named): ...", "nn.Module"),
        ("mlp", "x = 1", "GatedMLP"),
        ("mlp", "x = 1", "nn.Linear"),
        ("mlp", "x = 1", "Other): ...\n\nclass Other(Part"),  # left to Python, which will say so
        ("norm", "def __init__(self, size, eps): ...", "nn.Module"),
    ],
)
def test_a_constructor_that_takes_what_it_gets_is_fine(
    project_root: Path, kind: str, signature: str, base: str
) -> None:
    assert judged(project_root, made(signature, base), **{kind: "model.mine.Part"}) == ["model.mine"]


@pytest.mark.parametrize(
    ("kind", "signature", "base", "problem"),
    [
        ("layer_pattern", "def __init__(self): ...", "nn.Module", "model/mine.py:5: __init__(self), but it is made as"),
        (
            "layer_pattern",
            "def __init__(self, config, kind): ...",
            "nn.Module",
            "but it is made as Part(config); write",
        ),
        ("mlp", "def __init__(self, config, *, width): ...", "nn.Module", "write `def __init__(self, config)`"),
        ("norm", "def __init__(self, size): ...", "nn.Module", "but it is made as Part(size, eps)"),
        ("norm", "x = 1", "PlainMLP", "model/mlp.py:"),
        ("mlp", "x = 1", "nn.Module", "model/mine.py:4: class Part has no __init__; it is made as Part(config)"),
    ],
)
def test_a_constructor_that_does_not_is_refused(
    project_root: Path, kind: str, signature: str, base: str, problem: str
) -> None:
    code = made(signature, base)
    assert problem in refusal(project_root, code, **{kind: "model.mine.Part"})
