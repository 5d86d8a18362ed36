"""stages.params: one line per mistake, with file, line, key and the nearest valid name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from model.config import ModelConfig
from stages.errors import BadInput
from stages.execution import Execution
from stages.params import ParamsFile, Section, environment_overrides, field_names
from stages.train.params import TrainParams


class Inner(Section):
    depth: int = 1


class Stage(Section):
    n_steps: int = Field(default=10, ge=1)
    rate: float = 0.1
    name: str = "a"
    kind: Literal["one", "two"] = "one"
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    texts: list[str] = []
    files: Annotated[list[str], Field(min_length=1)] | Literal["auto"] = "auto"
    digest: str = Field(default="a", pattern="^[a-f]$")
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if self.n_steps == 13:
            raise ValueError("n_steps 13 is unlucky; use 12 or 14")
        return self


@dataclasses.dataclass(frozen=True)
class Plain:
    """A schema without pydantic, as model.config is."""

    n_heads: int = 4
    width: float = 8.0
    causal: bool = True
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])

    def __post_init__(self) -> None:
        if self.n_heads == 3:
            raise ValueError("n_heads 3 does not divide the width")


def read(tmp_path: Path, text: str, schema: type = Stage, section: str = "stage") -> object:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return ParamsFile(path).section(section, schema)


def complaint(tmp_path: Path, text: str, schema: type = Stage, section: str = "stage") -> str:
    with pytest.raises(BadInput) as error:
        read(tmp_path, text, schema, section)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_values_of_the_file_stand_over_the_defaults(tmp_path: Path) -> None:
    stage = read(tmp_path, "stage:\n  n_steps: 5  # few\n  rate: 1e-3\n")
    assert stage == Stage(n_steps=5, rate=0.001)


@pytest.mark.parametrize("text", ["", "stage:\n", "other: {a: 1}\n"])
def test_a_section_that_is_missing_or_empty_has_its_defaults(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Stage()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("n_step: 5", "stage.n_step: unknown key; did you mean n_steps?"),
        ("n_steps: '5'", "stage.n_steps: input should be a valid integer, not '5'"),
        ("n_steps: 5.0", "stage.n_steps: input should be a valid integer, not 5.0"),
        ("n_steps: true", "stage.n_steps: input should be a valid integer, not True"),
        ("n_steps: 0", "stage.n_steps: input should be greater than or equal to 1, not 0"),
        ("n_steps: 13", "stage.n_steps: 13 is unlucky; use 12 or 14"),
        ("rate: .nan", "stage.rate: input should be a finite number, not nan"),
        ("rate: -.inf", "stage.rate: input should be a finite number, not -inf"),
        ("rate: null", "stage.rate: input should be a valid number, not None"),
        ("name: 3", "stage.name: input should be a valid string, not 3"),
        ("kind: three", "stage.kind: input should be 'one' or 'two', not 'three'"),
        ("batch: aut", "stage.batch: input should be a valid integer or 'auto', not 'aut'"),
        ("batch: 0", "stage.batch: input should be greater than or equal to 1 or 'auto', not 0"),
        ("texts: [a, 1]", "stage.texts: input should be a valid string, not 1"),
        ("files: []", "stage.files: input should have at least 1 item or 'auto', not []"),
        ("files: 3", "stage.files: input should be a valid list or 'auto', not 3"),
        ("digest: x", "stage.digest: input should match pattern '^[a-f]$', not 'x'"),
        ("inner: {dept: 1}", "stage.inner.dept: unknown key; did you mean depth?"),
        ("inner: {depth: x}", "stage.inner.depth: input should be a valid integer, not 'x'"),
    ],
)
def test_a_mistake_names_line_key_and_mend(tmp_path: Path, line: str, problem: str) -> None:
    assert complaint(tmp_path, f"stage:\n  # why\n  {line}\n") == f"params.yaml:3: {problem}"


def test_an_unknown_key_like_no_other_lists_what_there_is(tmp_path: Path) -> None:
    message = complaint(tmp_path, "stage:\n  zzz: 5\n")
    assert message == (
        "params.yaml:2: stage.zzz: unknown key; known are n_steps, rate, name, kind, batch, texts, files, digest, inner"
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("n_head: 2", "params.yaml:2: stage.n_head: unknown key; did you mean n_heads?"),
        ("n_heads: '2'", "params.yaml:2: stage.n_heads: input should be a valid integer, not '2'"),
        ("n_heads: 2.0", "params.yaml:2: stage.n_heads: input should be a valid integer, not 2.0"),
        ("causal: 1", "params.yaml:2: stage.causal: input should be true or false, not 1"),
        ("width: .inf", "params.yaml:2: stage.width: input should be a finite number, not inf"),
        ("n_heads: 3", "params.yaml:2: stage.n_heads: 3 does not divide the width"),
    ],
)
def test_a_dataclass_is_as_strict_as_a_section(tmp_path: Path, line: str, problem: str) -> None:
    assert complaint(tmp_path, f"stage:\n  {line}\n", Plain) == problem


@pytest.mark.parametrize(
    ("schema", "lines", "problem"),
    [
        (
            TrainParams,
            ["max_steps: 30", "warmup_steps: 900"],
            "stage.warmup_steps: 900 must be less than max_steps 30; lower it, for example to 3, or train longer",
        ),
        (
            Execution,
            ["threads: 1", "compile: yes"],
            "stage.compile: input should be true or false or 'auto', not 'yes'",
        ),
    ],
)
def test_mistakes_that_many_make_are_told_with_line_and_mend(tmp_path, schema, lines, problem) -> None:
    text = "".join(f"  {line}\n" for line in lines)
    assert complaint(tmp_path, f"stage:\n{text}", schema) == f"params.yaml:3: {problem}"


def test_a_dataclass_keeps_its_type_and_its_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "stage:\n  width: 16\n", Plain) == Plain(width=16.0)
    assert field_names(Plain) == ["n_heads", "width", "causal", "sizes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage:\n\tn_steps: 1\n", "params.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("stage: 3\n", "params.yaml:1: stage: must hold keys, one a line"),
        ("- stage\n", "params.yaml: must hold sections such as `train:` with keys below them"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text) == message


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, "stage:\n  n_steps: 1\n  n_steps: 2\n")
    assert message.startswith('params.yaml:3: not valid YAML: found duplicate key "n_steps"')


def test_a_missing_file_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not found; run this in the root of the repository"):
        ParamsFile(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes("stage: {name: é}".encode("latin-1"))
    with pytest.raises(BadInput, match="byte 14 is not UTF-8"):
        ParamsFile(tmp_path / "params.yaml")


def test_an_unknown_section_has_a_nearest_match(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("stage:\n  n_steps: 1\ntrian:\n  lr: 1\n")
    params = ParamsFile(tmp_path / "params.yaml")
    with pytest.raises(BadInput, match=r"params.yaml:3: trian: unknown section; did you mean train\?"):
        params.check_section_names(["stage", "train"])


def test_the_environment_overrides_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_EXECUTION__DEVICE", "cpu")
    monkeypatch.setenv("MILLRACE_EXECUTION__THREADS", "3")
    monkeypatch.setenv("MILLRACE_EXECUTION__TRACKING", "false")
    monkeypatch.setenv("MILLRACE_EXECUTION__SCRATCH", "")
    text = "execution:\n  device: cuda\n  scratch: elsewhere\n"
    found = read(tmp_path, text, Execution, "execution")
    assert found == Execution(device="cpu", threads=3, tracking=False, scratch="")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MILLRACE_EXECUTION__THREADS", "two", "execution.threads: input should be a valid integer, not 'two'"),
        ("MILLRACE_EXECUTION__THREAD", "2", "execution.thread: unknown key; did you mean threads?"),
        ("MILLRACE_EXECUTION__SCRATCH", "{", "'{' is not valid YAML; quote it as you would in params.yaml"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert complaint(tmp_path, "execution:\n", Execution, "execution") == f"{variable}: {message}"


def test_the_environment_may_not_override_what_dvc_watches() -> None:
    with pytest.raises(BadInput, match=r"`dvc exp run -S train.max_steps=20`"):
        environment_overrides({"MILLRACE_TRAIN__MAX_STEPS": "20"})
    assert environment_overrides({"MILLRACE_HOME": "x", "TRAIN__MAX_STEPS": "20"}) == {}


def test_dvc_exp_run_changes_no_line_of_params_yaml_but_the_one_it_is_told_to(tmp_path: Path) -> None:
    """`dvc exp run -S` writes the file anew, so it must stand in git in the form in which DVC writes it."""
    from dvc.utils.hydra import apply_overrides

    original = (Path(__file__).parents[2] / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(original)
    apply_overrides(path, ["train.seed=7"])
    changed = [
        (before, after)
        for before, after in zip(original.splitlines(), path.read_text().splitlines(), strict=True)
        if before != after
    ]
    assert [after.split("#")[0].split() for _, after in changed] == [["seed:", "7"]]
    apply_overrides(path, ["train.seed=0"])
    assert path.read_text() == original


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hidden_size: 12", "1: model.head_dim: comes to 3; rotary embedding needs an even one, set head_dim to 4"),
        ("window: 0", "2: model.window: is 0; it must be at least 1"),
        (
            "layer_pattern: swa*3+mla",
            "2: model.layer_pattern: 'swa*3+mla' names 4 layers, the model has 3; set n_layers",
        ),
        ("n_layers: 1000000000", "2: model.n_layers: is 1000000000; it must be at most 10000"),
        (
            "n_experts: 1\n  experts_per_token: 2",
            "3: model.experts_per_token: is 2, not within 1 and n_experts 1; lower",
        ),
        ("residual_init: zero\n  post_norm: true", "2: model.residual_init: zero: a norm behind"),
        ("pre_norm: false", "2: model.pre_norm: pre_norm and post_norm are both false"),
    ],
)
def test_the_model_is_refused_at_the_line_of_the_key_that_its_problem_begins_with(
    tmp_path: Path, line: str, problem: str
) -> None:
    assert complaint(tmp_path, f"model:\n  {line}\n", ModelConfig, "model").startswith(f"params.yaml:{problem}")
