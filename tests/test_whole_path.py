"""The real graph in a real DVC repository, from text files to a registered model, with tiny params."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.dvc_program import dvc_command
from pipeline.environment import for_programs
from pipeline.smoke import copy_working_tree, override_params

REPOSITORY = Path(__file__).parents[1]
TINY = {
    "download": {"source": "files", "inputs": "texts"},
    "split": {"validation": 0.1, "test": 0.1},
    "clean": {"min_words": 5},
    "tokenizer": {"vocab_size": 320},
    "pack": {"context_length": 32},
    "model": {"n_layers": 1, "hidden_size": 16, "n_heads": 2, "n_kv_heads": 1},
    "train": {"max_steps": 6, "batch_tokens": 256, "warmup_steps": 1, "eval_interval": 3, "validation_tokens": 256},
    "evaluate": {"bootstrap_samples": 100, "max_analysis_tokens": 128, "sample_tokens": 4},
    "execution": {"device": "cpu", "threads": 1, "checkpoint_interval": 2, "log_interval": 1},
}
STAGES = ["code", "download", "clean", "dedup", "tokenizer", "pack", "train", "evaluate", "export"]


def environment() -> dict[str, str]:
    """Without the MLflow server that another test, or the user, may have set."""
    return {name: value for name, value in for_programs().items() if not name.startswith("MLFLOW_TRACKING")}


def dvc(root: Path, *arguments: str, check: bool = True) -> str:
    command = dvc_command(root, *arguments)  # the kills of these tests can tear DVC's books
    result = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    if check and result.returncode:
        pytest.fail(f"dvc {' '.join(arguments)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result.stdout + result.stderr


def ran(output: str) -> list[str]:
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def metrics(root: Path, stage: str) -> dict:
    return json.loads((root / "data" / stage / "metrics.json").read_text())


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the working tree with 150 small documents, after its first `dvc repro`."""
    root = tmp_path_factory.mktemp("whole") / "millrace"
    copy_working_tree(REPOSITORY, root)
    (root / "dvc.lock").unlink(missing_ok=True)
    override_params(root / "params.yaml", TINY)
    generator = random.Random(0)
    words = "the mill turns water into flour and a river of words into a model that reads".split()
    (root / "texts").mkdir()
    for number in range(150):
        sentences = [" ".join(generator.choices(words, k=12)).capitalize() + "." for _ in range(4)]
        (root / "texts" / f"{number:03}.txt").write_text("\n\n".join(sentences))
    git(root, "init", "-q")
    for key, value in {"user.name": "A Tester", "user.email": "tester@example.org"}.items():
        git(root, "config", key, value)  # queued experiments ask for them, and a bare machine has none
    git(root, "add", "-A")
    git(root, "commit", "-qm", "start")
    output = dvc(root, "repro")
    assert ran(output) == STAGES
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first run")
    return root


def test_every_output_of_the_contract_is_there(repository):
    expected = {
        "clean": {"documents_in", "documents_out", "bytes_in", "bytes_out", "documents_validation", "documents_test"},
        "dedup": {"documents_in", "documents_out", "exact_removed", "near_removed", "leaked_removed", "clusters"},
        "tokenizer": {"vocab_size", "bytes_per_token", "unused_tokens"},
        "pack": {"tokens_train", "tokens_validation", "tokens_test", "padding_ratio", "needless_cuts",
                 "dropped_tokens", "near_duplicates_across_splits", "eval_sha256"},
        "train": {"steps", "tokens", "train_loss", "validation_loss", "best_validation_loss", "best_step",
                  "skipped_steps", "parameters"},
        "evaluate": {"test_loss", "perplexity", "bits_per_byte", "bits_per_byte_low", "bits_per_byte_high",
                     "baseline_byte_trigram", "baseline_token_bigram", "baseline_token_trigram", "baseline_zstd",
                     "eval_sha256"},
        "export": {"hf_max_diff"},
    }  # fmt: skip
    for stage, keys in expected.items():
        assert keys <= set(metrics(repository, stage)), stage
    assert metrics(repository, "pack")["dropped_tokens"] == 0
    assert metrics(repository, "pack")["near_duplicates_across_splits"] == 0
    assert metrics(repository, "export")["hf_max_diff"] <= 1e-4
    assert metrics(repository, "evaluate")["eval_sha256"] == metrics(repository, "pack")["eval_sha256"]


def test_the_model_stands_in_the_registry_as_champion(repository):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{repository}/.dvc/tmp/millrace/mlflow.db")
    version = client.get_model_version_by_alias("millrace", "champion")
    assert float(version.tags["bits_per_byte"]) == pytest.approx(metrics(repository, "evaluate")["bits_per_byte"])
    history = client.get_metric_history(version.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]


def test_a_second_repro_does_nothing_and_git_stays_clean(repository):
    assert ran(dvc(repository, "repro")) == []
    status = subprocess.run(["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True)
    assert status.stdout == ""


def test_a_comment_reruns_the_fingerprints_alone(repository):
    path = repository / "model" / "mlp.py"
    original = path.read_text()
    path.write_text(original.replace('"""From [..', '"""Maps from [..') + "\n# a remark\n")
    assert ran(dvc(repository, "repro")) == ["code"]
    path.write_text(original)
    dvc(repository, "repro")


def test_an_experiment_reruns_train_evaluate_and_export_and_moves_no_alias(repository):
    from mlflow import MlflowClient

    output = dvc(repository, "exp", "run", "-S", "model.post_norm=true", "--name", "post-norm")
    assert ran(output) == ["code", "train", "evaluate", "export"]
    client = MlflowClient(f"sqlite:///{repository}/.dvc/tmp/millrace/mlflow.db")
    versions = client.search_model_versions("name='millrace'")
    assert len(versions) == 2
    assert int(client.get_model_version_by_alias("millrace", "champion").version) == 1
    shown = dvc(repository, "exp", "show", "--csv", "--no-pager")
    assert "post-norm" in shown
    changed = subprocess.run(
        ["git", "diff", "--numstat", "params.yaml"], cwd=repository, capture_output=True, text=True
    )
    assert changed.stdout.split()[:2] == ["1", "1"], "DVC writes params.yaml anew; one line alone may differ"
    git(repository, "checkout", "--", ".")
    dvc(repository, "checkout")
    assert ran(dvc(repository, "repro")) == []


def processes_below(root: Path) -> list[psutil.Process]:
    """Everything that works in `root` or deeper, but this process."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(root) and process.pid != os.getpid():
            found.append(process)
    return found


def kill_at_step(repository: Path, step: int) -> None:
    """kill -9 of everything that works in the repository, once a checkpoint at `step` or later is there."""
    scratch, deadline = repository / ".dvc/tmp/millrace/train", time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(folder.name[5:]) >= step for folder in scratch.glob("*/step-????????")):
            break
        time.sleep(0.01)
    else:
        pytest.fail(f"no checkpoint at step {step}")
    assert not list(scratch.glob("*/finished")), "training ended before it could be killed"
    for _ in range(3):  # what was being started
        for process in processes_below(repository):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)


def test_killed_in_training_it_goes_on_in_the_workspace_and_in_the_queue(repository):
    scratch = repository / ".dvc/tmp/millrace/train"
    subprocess.run(["rm", "-rf", str(scratch)], check=True)
    params = ["-S", "train.max_steps=300", "-S", "train.seed=7", "-S", "train.eval_interval=300"]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", "killed", *params, "train"]
    first = subprocess.Popen(command, cwd=repository, env=environment(), stdout=subprocess.DEVNULL)
    kill_at_step(repository, 10)
    assert first.wait() == -signal.SIGKILL
    dvc(repository, "exp", "run", "--queue", "--name", "queued", *params, "train")
    start = [sys.executable, "-m", "dvc", "queue", "start"]  # its worker would hold a pipe open to the end
    subprocess.run(start, cwd=repository, env=environment(), stdout=subprocess.DEVNULL, check=True)
    kill_at_step(repository, 60)
    output = dvc(repository, "exp", "run", "--force", "--name", "killed", *params, "train")
    resumed_at = int(re.search(r"resuming at step (\d+)", output)[1])
    assert resumed_at >= 60
    resumed = (repository / "data/train/last/manifest.json").read_text()
    subprocess.run(["rm", "-rf", str(scratch)], check=True)
    fresh = dvc(repository, "repro", "--force", "--single-item", "train")
    assert "resuming" not in fresh
    assert (repository / "data/train/last/manifest.json").read_text() == resumed
    git(repository, "checkout", "--", ".")
    dvc(repository, "checkout")


def test_bad_params_stop_before_any_work_and_good_outputs_stay(repository):
    override_params(repository / "params.yaml", {"model": {"n_kv_head": 2}})
    output = dvc(repository, "repro", check=False)
    assert "model.n_kv_head: unknown key; did you mean n_kv_heads?" in output
    assert ran(output) == ["code"]
    git(repository, "checkout", "--", ".")
    assert (repository / "data/export/hf/model.safetensors").exists()
    dvc(repository, "repro")
