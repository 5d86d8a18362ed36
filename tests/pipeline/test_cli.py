"""The command `millrace`: help, exit codes, params and doctor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cli, doctor, experiment
from pipeline.params_view import Value, resolved
from stages.errors import BadInput

ROOT = Path(__file__).parents[2]


def millrace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["millrace", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the real dvc.yaml, and a params.yaml with a mistake in it."""
    for name in ("dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    path = tmp_path / "params.yaml"
    path.write_text(path.read_text().replace("n_kv_heads:", "n_kv_head:"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_is_light_and_shows_what_to_type() -> None:
    code = (
        "import sys; from pipeline import cli; sys.argv = ['millrace', '--help']; cli.main(); "
        "print(sorted({'torch', 'prefect', 'mlflow', 'dvc', 'numpy'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert said.endswith("[]\n")
    for words in ("millrace run --smoke", "millrace doctor", "dvc metrics show", "2 bad params or input"):
        assert words in said


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "trian"], "trian: no stage of dvc.yaml; did you mean train?\n"),
        (["run", "--only"], "--only needs the name of a stage: millrace run train --only\n"),
        (
            ["run", "--smoke", "-S", "train.seed=1"],
            "the recipe smoke is a check with params of its own (recipes/smoke.yaml); leave out -S\n",
        ),
        (["run", "-S", "train.seed"], "-S train.seed: must read section.key=value, such as -S train.max_steps=20\n"),
        (["params", "trian"], "trian: no section of params.yaml; there are download, split,"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    code, out, err = millrace(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "") and err.startswith(f"millrace: {message}") and err.count("\n") == 1


def test_a_mistake_in_a_setting_is_told_as_one_of_the_setting(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def beside(root: Path, settings: tuple[str, ...]) -> Iterator[experiment.Experiment]:
        yield experiment.Experiment("name", broken, {})

    monkeypatch.setattr(experiment, "worktree", beside)
    monkeypatch.chdir(ROOT)
    code, _, err = millrace(capsys, monkeypatch, "run", "-S", "model.n_kv_head=2")
    assert (code, err) == (2, "millrace: -S: model.n_kv_head: unknown key; did you mean n_kv_heads?\n")


def test_an_unknown_option_is_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = millrace(capsys, monkeypatch, "run", "--onyl")
    assert code == 2 and "--only" in err


@pytest.mark.parametrize("arguments", [["run"], ["run", "--smoke"], ["params"]])
def test_bad_params_stop_a_run_before_anything_starts(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    code, out, err = millrace(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("millrace: params.yaml:") and "model.n_kv_head: unknown key; did you mean n_kv_heads?" in err
    assert not (broken / ".dvc").exists()


def test_the_root_is_found_from_below_and_missed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "stages" / "code")
    assert cli.find_root() == ROOT
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no params.yaml and dvc.yaml here or above"):
        cli.find_root()


@pytest.mark.usefixtures("in_root")
def test_params_are_printed_with_their_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_EXECUTION__THREADS", "3")
    code, out, _ = millrace(capsys, monkeypatch, "params", "--json")
    found = json.loads(out)
    lines = (ROOT / "params.yaml").read_text().splitlines()
    assert code == 0 and found["execution.threads"] == {"value": 3, "origin": "MILLRACE_EXECUTION__THREADS"}
    for name, entry in found.items():
        if entry["origin"].startswith("params.yaml:"):
            line = lines[int(entry["origin"].split(":")[1]) - 1]
            assert line.strip().startswith(f"{name.split('.')[1]}:"), name
    _, out, _ = millrace(capsys, monkeypatch, "params", "split")
    assert [line.split()[0] for line in out.splitlines()] == ["split.validation", "split.test", "split.salt"]
    _, out, _ = millrace(capsys, monkeypatch, "params", "model")
    assert re.fullmatch(r"model: [\d,]+ parameters; .* 384 bytes a full layer, 768 with MHA.*", out.splitlines()[-1])


def test_a_key_that_does_not_stand_in_the_file_is_a_default(broken: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (broken / "params.yaml").write_text("\n".join(line for line in text.split("\n") if "salt:" not in line))
    assert Value("split.salt", "millrace", "default") in resolved(broken)


def test_the_doctor_finds_this_repository_well() -> None:
    findings = {finding.check: finding for finding in doctor.examine(ROOT)}
    assert list(findings) == [
        "python", "packages", "torch", "compiler", "disk", "file system", "databases", "git", "dvc", "links",
        "params",
    ]  # fmt: skip
    assert {check for check, finding in findings.items() if finding.level == "failure"} == set()
    assert all(finding.mend for finding in findings.values() if finding.level != "ok")


def test_the_doctor_names_what_is_wrong_with_its_mend(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = broken / "pyproject.toml"
    project.write_text(project.read_text().replace('requires-python = ">=3.11"', 'requires-python = ">=3.99"'))
    (broken / "constraints.txt").write_text("sympy==0.0.1  # a pin\nno-such-package==1\n")
    monkeypatch.setenv("CC", "no-such-compiler")
    code, out, _ = millrace(capsys, monkeypatch, "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(out)}
    assert code == 1
    assert {check for check, finding in found.items() if finding["level"] == "failure"} >= {
        "python", "packages", "git", "dvc", "params"
    }  # fmt: skip
    assert "sympy is 1." in found["packages"]["found"] and "no-such-package is missing" in found["packages"]["found"]
    assert found["packages"]["mend"] == "run `make setup`"
    assert found["compiler"]["level"] == "warning" and "n_kv_head" in found["params"]["found"]
    assert all(finding["mend"] for finding in found.values() if finding["level"] != "ok")


def test_the_doctor_asks_for_cxx_only_to_compile_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MILLRACE_EXECUTION__DEVICE", "cpu")
    assert doctor.compiler(ROOT).found.split(":")[0] != "no-such-compiler"
    monkeypatch.setenv("MILLRACE_EXECUTION__COMPILE", "true")
    found = doctor.compiler(ROOT)
    assert found.level == "warning" and found.found.startswith("no-such-compiler:") and "C++ compiler" in found.mend


def test_the_doctor_asks_for_who_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in [name for name in os.environ if name.startswith(("GIT_", "EMAIL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    found = doctor.git(tmp_path)
    assert found.level == "warning" and "no user.name or user.email: experiments cannot be kept" in found.found
    assert "git config --global user.email" in found.mend
    for key, value in (("user.name", "A"), ("user.email", "a@b")):
        subprocess.run(["git", "config", key, value], cwd=tmp_path, check=True)
    assert doctor.git(tmp_path).level == "ok"


def test_the_reason_of_dvc_is_told_and_not_its_offer_of_help() -> None:
    said = "ERROR: unexpected error - Git user name and email must be configured\n\nHaving any troubles? Hit us up\n"
    assert experiment.reason_in(said) == "Git user name and email must be configured"


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).parent / "millrace"
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    said = subprocess.run([script, "params", "split"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert said.returncode == 0 and "split.salt" in said.stdout
