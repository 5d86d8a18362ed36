"""The tab of the training: curves from files that may be growing."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages.evaluate.training_tab import MOST_POINTS, smoothed, speed_charts, training_charts
from stages.train.probes import HEADER

ROWS = "step,tokens,loss,loss_smooth,lr,grad_norm,validation_loss\n"


def test_the_smoothed_loss_lies_on_the_curve_and_does_not_lag() -> None:
    assert smoothed(np.array([4.0, 4, 1, 1]), 1) == pytest.approx([4, 3.25, 1.75, 1]), "the example of the module"
    line = np.linspace(8, 4, 50)
    assert smoothed(line, 5)[5:-5] == pytest.approx(line[5:-5]), "a running mean would lie above it"
    assert smoothed(line, 0) == pytest.approx(line) and len(smoothed(np.array([]), 3)) == 0
    noise = np.random.default_rng(0).normal(size=1000)
    assert smoothed(noise, 10).std() < 0.3, "a quarter of the noise is left: sqrt(2 / (3 * 11))"


def test_few_steps_have_no_smoothed_curve_and_very_many_are_thinned(tmp_path: Path) -> None:
    def losses(steps: int) -> list[dict]:
        rows = "".join(f"{i},{i * 10},{8 - i / steps},8,0.1,1,{5 if i == 1 else ''}\n" for i in range(1, steps + 1))
        (tmp_path / "loss.csv").write_text(f"{ROWS}{rows}{steps + 1},")
        return training_charts(tmp_path)["tr-loss"]["traces"]

    assert [trace["name"] for trace in losses(20)] == ["each step", "validation"]
    assert [trace["name"] for trace in losses(100)] == ["each step", "smoothed over 9 steps", "validation"]
    many = losses(2 * MOST_POINTS)
    assert [len(trace["x"]) for trace in many] == [MOST_POINTS, MOST_POINTS, 1], "no validation is left out"
    assert losses(20)[0]["x"][-1] == 200, "a line that is not at its end yet waits"


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text(f"{ROWS}1,10,5.0,5,0.1,1,\n2,20,nan,5,0.1,inf,\n3,30,4.0,5,0.1,1,\n")
    charts = training_charts(tmp_path)
    assert charts["tr-loss"]["traces"][0]["y"] == [5, 4] and charts["tr-norm"]["traces"][0]["x"] == [10, 30]


def test_a_probe_that_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text(f"{ROWS}1,10,5.0,5,0.1,1,\n")
    (tmp_path / "probes.csv").write_text(f"{HEADER}1,0,1.5,inf,0.1,nan,0\n2,0,1.4,2.0,0.1,,0\n")
    charts = training_charts(tmp_path)
    assert charts["tr-gradient_norm"]["traces"][0]["x"] == [2] and "tr-attention_logit_max" not in charts
    json.dumps(charts, allow_nan=False)


def test_probes_have_a_chart_each_with_a_line_a_layer(tmp_path: Path) -> None:
    rows = "2,embedding,,0.1,0.001,,\n2,0,1.5,0.2,0.002,3.5,0.25\n2,1,1.6,0.3,0.002,,\n2,head,,0.1,0.001,,\n"
    (tmp_path / "probes.csv").write_text(HEADER + rows)
    charts = training_charts(tmp_path)
    names = {name: [trace["name"] for trace in chart["traces"]] for name, chart in charts.items()}
    assert names["tr-gradient_norm"] == ["embedding", "layer 0", "layer 1", "head"]
    assert names["tr-activation_rms"] == ["layer 0", "layer 1"] and names["tr-attention_logit_max"] == ["layer 0"]
    (tmp_path / "probes.csv").write_text(HEADER)
    assert "tr-gradient_norm" not in training_charts(tmp_path)


def test_speed_is_read_from_the_lines_of_the_log() -> None:
    log = [
        "step 0 validation 8.3",
        "step 10 tokens 5 loss 7 grad_norm 5 tokens/s 427 mfu 31.5% memory 0.8 GiB waiting 0.04% eta 0:38:20",
        "step 20 tokens 9 loss 7 grad_norm 5 tokens/s 500 memory 0.9 GiB waiting 0.04% eta 0:38:20",
    ]
    points = {name: (chart["traces"][0]["x"], chart["traces"][0]["y"]) for name, chart in speed_charts(log).items()}
    assert points == {"tr-speed": ([10, 20], [427, 500]), "tr-mfu": ([10], [31.5]), "tr-memory": ([10, 20], [0.8, 0.9])}
