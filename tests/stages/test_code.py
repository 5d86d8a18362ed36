"""stages.code: which stages an edit changes, and which params are refused before any work."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from model.config import ModelConfig
from stages.code.sections import SECTIONS
from stages.code.stage import WITHOUT_EFFECT, fingerprint, run, stage_names
from stages.entry import Job, plain
from stages.errors import BadInput
from stages.files import content_hash
from stages.fingerprint.current import changed_modules
from stages.fingerprint.imports import Project

ROOT = Path(__file__).parents[2]
USERS_OF_MODEL = {"train", "evaluate", "export"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The real code and params in a folder of their own."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("model", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unwanted)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def digests(root: Path) -> dict[str, str]:
    project = Project(root)
    return {stage: fingerprint(project, stage)["digest"] for stage in stage_names(project)}


def changed_by_edits(root: Path, *names: str) -> list[set[str]]:
    """The stages whose digest changes with an edit of each file, one after the other."""
    found = []
    before = digests(root)
    for name in names:
        path = root / name
        path.write_text(path.read_text() + "\nEDIT = 1\n")
        after = digests(root)
        found.append({stage for stage in before if before[stage] != after[stage]})
        before = after
    return found


def test_every_stage_of_the_graph_has_a_fingerprint(copy: Path) -> None:
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(digests(copy)) == graph.keys() - {"code"}
    assert set(graph["code"]["outs"]) == {f"data/code/{stage}.json" for stage in digests(copy)}


def test_a_comment_a_docstring_and_formatting_change_no_stage(copy: Path) -> None:
    before = digests(copy)
    for path in sorted(copy.rglob("*.py")):
        if path.name != "__init__.py":
            bare = ast.unparse(ast.parse(path.read_text()))  # other quotes, line breaks and brackets, no comments
            path.write_text(f'"""Another docstring."""\n# a comment\n{bare}\n')
    assert digests(copy) == before


def test_an_edit_changes_the_stages_that_can_reach_it_and_no_other(copy: Path) -> None:
    stages = stage_names(Project(copy))
    own = [f"stages/{stage}/stage.py" for stage in stages]
    expected = [USERS_OF_MODEL, set(stages), *({stage} for stage in stages)]
    assert changed_by_edits(copy, "model/attention.py", "stages/entry.py", *own) == expected


def test_what_has_no_effect_changes_no_stage(copy: Path) -> None:
    files = [f"{module.replace('.', '/')}.py" for module in WITHOUT_EFFECT]
    assert changed_by_edits(copy, *files) == [set()] * len(files)


def test_the_stage_writes_the_same_bytes_again(copy: Path) -> None:
    written = []
    for _ in range(2):
        job = Job("code", copy)
        job.prepare()
        run(job)
        job.publish()
        written.append(content_hash(job.out))
    assert written[0] == written[1]
    found = json.loads((copy / "data" / "code" / "train.json").read_text())
    assert found["version"] == 1
    assert found["modules"]["model.attention"].keys() >= {"<module>", "Attention", "Attention.forward"}


def test_no_heavy_library_is_loaded(copy: Path) -> None:
    code = (
        "import sys; from stages.code.stage import run; heavy = {'torch', 'numpy', 'pyarrow', 'mlflow', 'prefect', "
        "'transformers', 'datasets'} & sys.modules.keys(); print(sorted(heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr


def edit_params(root: Path, section: str, **values: object) -> None:
    path = root / "params.yaml"
    yaml = YAML(typ="rt")
    content = yaml.load(path.read_text())
    content[section].update(values)
    yaml.dump(content, path)


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        (
            "train",
            {"batch_tokens": 4000},
            r"params.yaml:\d+: train.batch_tokens: 4000 is no multiple of pack.context_length 256; the nearest "
            "are 3840 or 4096",
        ),
        ("train", {"batch_tokens": 100}, "the nearest are 256$"),
        (
            "execution",
            {"n_processes": 17},
            "4096 tokens are 16 rows of pack.context_length 256, fewer than execution.n_processes 17; use 4352 or "
            "more, or fewer processes",
        ),
        ("model", {"n_head": 2}, r"params.yaml:\d+: model.n_head: unknown key; did you mean n_heads\?"),
        ("execution", {"devices": "cpu"}, r"execution.devices: unknown key; did you mean device\?"),
        ("export", {"zzz": 1}, "export.zzz: unknown key"),
    ],
)
def test_bad_params_of_any_section_stop_before_any_work(copy: Path, section: str, values: dict, problem: str) -> None:
    edit_params(copy, section, **values)
    with pytest.raises(BadInput, match=problem):
        run(Job("code", copy))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": {"precision": "fp8"}}, "train.precision: fp8, but no linear layer is at least .* set it to bf16"),
        (
            {"train": {"precision": "fp8", "fp8_min_width": 64}, "execution": {"device": "cpu"}},
            "train.precision: fp8 needs a GPU, but execution.device is cpu",
        ),
        (
            {"execution": {"device": "cpu", "attention_backend": "fa4"}},
            "attention_backend: fa4 runs on GPUs .*; set it to auto$",
        ),
        ({"execution": {"device": "cpu", "cuda_graphs": True}}, "execution.cuda_graphs: true, but execution.device is"),
        (
            {"execution": {"activation_checkpointing": "every_99"}},
            "activation_checkpointing: every_99, but the model has 3 layers, .* set it to every_3 or less, full,",
        ),
        (
            {"model": {"layer_pattern": "swa", "sink_tokens": 256}},
            "model.sink_tokens: 256 are all of a row of pack.context_length 256, so no window .* set it to a few",
        ),
        ({"model": {"dropout": 0.1}, "execution": {"cuda_graphs": True}}, "cuda_graphs: true, but what model.dropout"),
        (
            {"train": {"optimizer": "adamw_8bit"}, "execution": {"sharding": "full", "n_processes": 2}},
            "execution.sharding: full, but adamw_8bit scales blocks .* set train.optimizer to one of adamw, lion, muon",
        ),
    ],
)
def test_a_training_that_no_machine_could_do_is_refused_before_any_work(
    copy: Path, changes: dict, problem: str
) -> None:
    for section, values in changes.items():
        edit_params(copy, section, **values)
    with pytest.raises(BadInput, match=problem):
        run(Job("code", copy))


def test_a_source_that_no_file_has_is_refused_before_any_work(copy: Path) -> None:
    for name in ("wiki/a.txt", "news/b.jsonl"):
        (copy / "inputs" / name).parent.mkdir(parents=True)
        (copy / "inputs" / name).write_text("text")
    edit_params(copy, "download", source="files")
    edit_params(copy, "pack", mixture={"wiki": 2.0, "mews": 0.5})
    problem = (
        r"params.yaml:\d+: pack.mixture: no file in inputs is of the source 'mews'; did you mean news\? There are news"
    )
    with pytest.raises(BadInput, match=problem):
        run(Job("code", copy))


def test_unknown_and_missing_sections_are_refused(copy: Path) -> None:
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text + "\ntrian:\n  lr: 1\n")
    with pytest.raises(BadInput, match=r"trian: unknown section; did you mean train\?"):
        run(Job("code", copy))
    (copy / "params.yaml").write_text(text.replace("\ntokenizer:", "\n#tokenizer:"))
    with pytest.raises(BadInput, match="(tokenizer: this section is missing|not valid YAML)"):
        run(Job("code", copy))


def test_the_environment_may_not_change_what_dvc_watches(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_TRAIN__MAX_STEPS", "3")
    with pytest.raises(BadInput, match=r"`dvc exp run -S train.max_steps=3`"):
        run(Job("code", copy))


def signature(stage: str) -> dict[str, str]:
    """The sections in the signature of a stage's function, with the names of their schemas."""
    tree = ast.parse((ROOT / "stages" / stage / "stage.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    return {a.arg: ast.unparse(a.annotation) for a in function.args.args if a.arg != "job" and a.annotation}


def test_the_table_of_sections_is_what_the_stages_read_and_what_the_graph_declares() -> None:
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    read: dict[str, str] = {"execution": "Execution"}
    for stage, entry in graph.items():
        assert sorted(signature(stage)) == sorted(entry.get("params", [])), stage
        read |= signature(stage)
    assert read == {name: schema.__name__ for name, schema in SECTIONS.items()}


def test_params_yaml_holds_every_key_with_its_default() -> None:
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    defaults = {name: plain(schema()) for name, schema in SECTIONS.items()}
    defaults["model"] = {
        field.name: field.default for field in dataclasses.fields(ModelConfig)
    }  # sizes of 0, not resolved
    assert content == defaults


def test_no_key_has_a_name_that_the_run_cache_of_dvc_passes_over() -> None:
    # DVC leaves `size` and `nfiles` out of the key of its run cache, in params as well as in outputs: a stage
    # with another `size` would be restored as the old one (dvc/stage/cache.py, `_get_cache_hash`).
    for section, schema in SECTIONS.items():
        assert not {"size", "nfiles"} & plain(schema()).keys(), section


def test_every_key_is_read_by_a_stage_that_declares_its_section() -> None:
    project = Project(ROOT)
    declared = {stage: {*signature(stage), "execution"} for stage in stage_names(project)}
    for section, schema in SECTIONS.items():
        read: set[str] = set()
        for stage in (stage for stage, sections in declared.items() if section in sections):
            for module in project.reachable(f"stages.{stage}.__main__", frozenset()):
                for node in ast.walk(project.tree(module)):
                    if isinstance(node, ast.Attribute):
                        read.add(node.attr)
                    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                        read.add(node.value)  # getattr(params, "min_words")
        assert plain(schema()).keys() <= read, section


SILENT = {
    "fingerprint/current": "def changed_modules(root, stage): return []",
    "devices": """
        import contextlib
        @contextlib.contextmanager
        def own_gpus(job, count=1):
            yield []
    """,
    "dvc_cache": "def way_back(root, stage): return ''",
    "first_compile": "def tell_first_compile(stage, folder): pass",
    "progress": """
        import contextlib, types
        def say(message): pass
        @contextlib.contextmanager
        def progress(label, total, unit, scale=False, note=""):
            yield types.SimpleNamespace(update=lambda n=1: None)
    """,
    "provenance": """
        def provenance(job): return {"git_commit": "another"}
        def in_experiment(root): return True
    """,
    "tracking": """
        import contextlib
        class Unavailable(Exception): pass
        class Run:
            tags = {}
            def __init__(self, *given): pass
            def metrics(self, step, values): pass
            def results(self, values): pass
            def artifact(self, path, folder=""): pass
            def call(self, function, seconds): raise Unavailable("off")
        @contextlib.contextmanager
        def open_run(job, key, params, tags=None): yield Run()
        def store_address(job): return "nowhere", None
    """,
    "mlflow_store": "",
    "export/registry": "def publish(job, name, key, folder, tracked): pass",
    "train/curves": "from stages.train.step import Hook\nclass Curves(Hook):\n    def __init__(self, *given): pass\n",
    "train/samples": "from stages.train.step import Hook\nclass Samples(Hook):\n    def __init__(self, *given): pass\n",
    "train/spikes": "from stages.train.step import Hook\nclass Spikes(Hook):\n    def __init__(self, *given): pass\n",
    "train/profile": "from stages.train.step import Hook\nclass Profile(Hook):\n    def __init__(self, *given): pass\n",
    "train/memory": """
        import contextlib
        @contextlib.contextmanager
        def out_of_memory_explained(run): yield
    """,
    "train/probes": "from stages.train.step import Hook\nclass Probes(Hook):\n    def __init__(self, *given): pass\n",
    "train/peaks": "def peak_flops(name, precision): return None",
}

STAGES_IN_ONE_PROCESS = """
import importlib, sys
from pathlib import Path
from stages.entry import prepare_job
for name in ("download", "clean", "dedup", "tokenizer", "pack", "train"):
    run = importlib.import_module(f"stages.{name}.stage").run
    job = prepare_job(name, run, Path.cwd())
    job.prepare()
    run(job, **job.sections)
    job.publish()
"""

TINY = {
    "download": {"source": "files"},
    "split": {"validation": 0.2, "test": 0.2},
    "clean": {"min_words": 3, **{f"max_top_{n}gram_ratio": None for n in (2, 3, 4)}},
    "tokenizer": {"vocab_size": 300},
    "pack": {"context_length": 16},
    "model": {"n_layers": 1, "hidden_size": 32},
    "train": {"max_steps": 3, "batch_tokens": 64, "warmup_steps": 1, "validation_tokens": 64},
    "execution": {"tracking": False, "compile": False, "threads": 1},
}


def test_a_stage_does_not_begin_with_code_that_was_not_judged(copy: Path) -> None:
    """An edit between `code` and a stage would be kept under the fingerprint of the code before."""
    shutil.copy(ROOT / "constraints.txt", copy)
    (copy / "inputs").mkdir()
    job = Job("code", copy)
    job.prepare()
    run(job)
    job.publish()
    assert changed_modules(copy, "clean") == []
    path = copy / "stages/clean/piece.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert changed_modules(copy, "clean") == []
    path.write_text(path.read_text() + "\nEDIT = 1\n")
    assert changed_modules(copy, "clean") == ["stages.clean.piece"] and changed_modules(copy, "pack") == []
    entry = copy / "stages/entry.py"
    entry.write_text(entry.read_text() + "\nEDIT = 1\n")
    command = [sys.executable, "-m", "stages.download"]
    answer = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert answer.returncode == 2, answer.stderr
    assert "stages.entry: edited since the stage code has looked; run `dvc repro --force" in answer.stderr
    assert not (copy / "data/download/manifest.json").exists()


@pytest.mark.slow
def test_the_modules_that_are_left_out_change_no_byte(copy: Path) -> None:
    for section, values in TINY.items():
        edit_params(copy, section, **values)
    shutil.copy(ROOT / "constraints.txt", copy)
    inputs = copy / "inputs"
    inputs.mkdir()
    words = "the mill turns a wheel and the water runs from the race into the river below".split()
    for number in range(40):
        text = " ".join(words[(number * 7 + place * place) % len(words)] for place in range(40))
        (inputs / f"{number:02d}.txt").write_text(f"Page {number}: {text}.\n")
    job = Job("code", copy)
    job.prepare()
    run(job)
    job.publish()
    assert {f"stages.{name.replace('/', '.')}" for name in (*SILENT, "execution")} == WITHOUT_EFFECT

    def outputs() -> dict[str, str]:
        environment = {**os.environ, "DVC_STAGE": ""}
        command = [sys.executable, "-c", STAGES_IN_ONE_PROCESS]
        answer = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        files = sorted(path for path in (copy / "data").rglob("*") if path.is_file())
        found = {str(path.relative_to(copy)): content_hash(path) for path in files}
        shutil.rmtree(copy / ".dvc", ignore_errors=True)  # the scratch
        for_people = ("timing.json", "training.log", "curves.html", "spikes.jsonl", "samples.jsonl")  # rates and texts
        return {name: digest for name, digest in found.items() if Path(name).name not in for_people}

    before = outputs()
    assert "data/train/best/model.safetensors" in before
    for name, source in SILENT.items():
        (copy / "stages" / f"{name}.py").write_text(textwrap.dedent(source))
    execution = copy / "stages" / "execution.py"
    execution.write_text(execution.read_text().replace("return self.workers or", "return self.workers or 3 or"))
    assert "or 3 or" in execution.read_text()
    assert outputs() == before
