"""What a training tells: the line of the log, the live page, the profile, and what to do when memory is full."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.errors import Failed
from stages.tracking import Run
from stages.train.curves import thinned
from stages.train.journal import Journal
from stages.train.loop import must_wait
from stages.train.memory import advice, out_of_memory_explained
from stages.train.peaks import COLUMN, PEAKS, peak_flops
from stages.train.state import TrainState
from stages.train.timing import Timing
from stages.train.worker import make_hooks
from tests.stages.test_train import EXECUTION, TRAIN, run_in

LINE = re.compile(
    r"step 10 tokens \d+ loss \d\.\d{4} smooth \d\.\d{4} lr \d\.\d\de-\d\d grad_norm \d+\.\d{3} tokens/s \d+ "
    r"memory \d+\.\d GiB waiting \d+\.\d\d% eta 0:00:\d\d"
)


def page_data(text: str) -> dict:
    return json.loads(re.search(r"const data = (\{.*\}), W =", text)[1])


def test_a_line_of_the_log_has_loss_speed_memory_waiting_and_what_is_left(packed):
    lines = (run_in(packed) / "training.log").read_text().splitlines()
    assert LINE.fullmatch(next(line for line in lines if line.startswith("step 10 ")))
    assert any(line.endswith("NEW BEST") for line in lines)


def test_the_page_needs_no_network_and_shows_what_loss_csv_holds(packed):
    out = run_in(packed)
    text = (out / "monitor/curves.html").read_text()
    assert "http:" not in text and "https:" not in text and "refresh" not in text
    data = page_data(text)
    with (out / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert data["curves"][0] == list(range(1, TRAIN.max_steps + 1))
    np.testing.assert_allclose(data["curves"][1], [float(row["loss"]) for row in rows[1:]], rtol=1e-5)
    assert [step for step, _ in data["validation"]] == [0, 4, 8, 12]
    assert data["speed"][0][0] == 10 and data["live"] is False


def test_while_it_trains_the_page_reloads_itself(packed, monkeypatch):
    from stages.train import curves

    monkeypatch.setattr(curves, "SECONDS_BETWEEN", 0.0)
    pages = []
    written = curves.Curves.write

    def write(hook, run, live):
        written(hook, run, live)
        pages.append(hook.path.read_text())

    monkeypatch.setattr(curves.Curves, "write", write)
    run_in(packed)
    assert ['http-equiv="refresh"' in page for page in pages] == [True, True, False]  # start, step 10, end
    assert page_data(pages[1])["step"] == 10


def test_a_long_curve_is_thinned_to_means_and_gaps_stay_gaps():
    values = np.stack([np.arange(1.0, 11), np.array([1, 3, np.nan, 5, np.nan, np.nan, 1, 2, 3, 4])], axis=1)
    assert thinned(values, 5) == [[1.5, 3.5, 5.5, 7.5, 9.5], [2.0, 5.0, None, 1.5, 3.5]]
    assert thinned(values[:0]) == [[], []]


def test_a_profile_has_a_trace_and_a_table_of_what_costs_most(packed, tmp_path_factory, capsys):
    without = (run_in(packed) / "last/manifest.json").read_bytes()
    scratch = tmp_path_factory.mktemp("scratch")
    out = run_in(packed, execution=EXECUTION.model_copy(update={"profile": 3, "scratch": str(scratch)}))
    assert (out / "last/manifest.json").read_bytes() == without
    (trace,) = scratch.rglob("trace.json")
    assert json.loads(trace.read_text())["traceEvents"]
    with trace.with_name("kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any("mm" in row["name"] for row in rows)
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=0.01)
    spent = [float(row["self_us"]) for row in rows]
    assert spent == sorted(spent, reverse=True)
    assert f"3 steps traced: {trace.parent}/trace.json and kernels.csv" in capsys.readouterr().out


def test_a_profile_longer_than_the_run_ends_with_it(packed, capsys):
    run_in(packed, TRAIN.model_copy(update={"max_steps": 4}), EXECUTION.model_copy(update={"profile": 500}))
    assert "2 steps traced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200", "fp8", 1979),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA B200", "fp8", 4500),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_the_peak_is_that_of_the_device_and_the_precision(name, precision, tflops):
    assert peak_flops(name, precision) == tflops * 1e12


def test_a_peak_that_nobody_knows_is_none():
    assert peak_flops("Some Other GPU", "bf16") is None
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp8") is None  # it has no fp8
    assert peak_flops("NVIDIA H2000", "bf16") is None
    assert all(len(peaks) == max(COLUMN.values()) + 1 for peaks in PEAKS.values())


def test_full_memory_names_the_param_to_lower_and_to_what():
    run = SimpleNamespace(ranks=SimpleNamespace(device="cpu"), execution=EXECUTION, micro_batch=32)
    message = (
        "CUDA out of memory. Tried to allocate 6.13 GiB. GPU 0 has a total capacity of 139.80 GiB of which 5 GiB is "
        "free. Process 1 has more"
    )
    with pytest.raises(Failed) as error, out_of_memory_explained(run):
        try:
            raise torch.OutOfMemoryError(message)
        finally:
            raise RuntimeError("the recording failed")
    assert str(error.value) == (
        "cpu is out of memory: Tried to allocate 6.13 GiB. GPU 0 has a total capacity of 139.80 GiB of which 5 GiB is "
        "free; set execution.micro_batch to 16 (it is 32 rows; the global batch stays)"
    )
    with pytest.raises(RuntimeError, match="another reason"), out_of_memory_explained(run):
        raise RuntimeError("another reason")
    run.micro_batch = 1
    assert advice(run).endswith("1 row already: set execution.activation_checkpointing to full (it is none)")
    run.execution = EXECUTION.model_copy(update={"activation_checkpointing": "full"})
    assert "shorten pack.context_length" in advice(run)


DOM = """
const elements = {}, element = id => elements[id] ??= {id, checked: ["raw", "smooth"].includes(id), innerHTML: ""};
globalThis.document = {getElementById: element, querySelectorAll: () => ["raw", "smooth", "log", "tail"].map(element)};
globalThis.localStorage = {getItem: () => "null", setItem: () => {}};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_the_script_of_the_page_draws_four_charts(packed, tmp_path):
    out = run_in(packed)
    text = (out / "monitor/curves.html").read_text()
    tokens = json.loads((out / "metrics.json").read_text())["tokens"]
    script = re.search(r"<script>(.+)</script>", text, re.DOTALL)[1]
    show = """
    for (const log of [false, true]) {
      elements.log.checked = log; draw();
      const charts = elements.charts.innerHTML;
      console.log(charts.split("<svg").length - 1, charts.split("<circle").length - 1, charts.includes("NaN"));
    }
    console.log(elements.title.textContent);
    """
    (tmp_path / "page.js").write_text(DOM + script + show)
    shown = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True)
    title = f"step 12 of 12, {tokens:,} tokens (ended)"
    assert shown.stdout.splitlines() == ["4 4 false", "4 4 false", title], shown.stderr


def test_all_ranks_wait_for_results_at_the_same_steps():
    """Each wait is a sum over the ranks: where one waits alone, the sums of different steps would be paired."""
    execution = EXECUTION.model_copy(update={"log_interval": 7, "checkpoint_interval": 9, "profile": 4})

    def waits(rank: int) -> list[int]:
        ranks = SimpleNamespace(rank=rank, world=2, device="cuda:0", first=rank == 0, any=bool)
        run = SimpleNamespace(ranks=ranks, params=TRAIN, execution=execution, state=TrainState())
        hooks = make_hooks(TRAIN, Journal(Path("training.log")), Run({}), Timing())
        hooks[0].start(run)  # the profile counts from the first step of the process
        return [step for step in range(1, 60) if must_wait(run, hooks, step, 0)]

    assert waits(0) == waits(1)
    assert {4, 6, 7, 8, 9} <= set(waits(0)) and 11 not in waits(0)
