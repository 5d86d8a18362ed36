"""training: its toy form works, and what it compares computes the same function from the same weights."""

import json
import sys

import pytest

from benchmarks import training
from benchmarks.sides import SIDES, Setting
from benchmarks.training import SHAPES, step_batches
from model.config import ModelConfig
from stages.train.params import TrainParams

TOY = SHAPES["toy"]
PARAMS = TrainParams(optimizer="adamw", lr=1e-3, warmup_steps=5, max_steps=100, batch_tokens=TOY.tokens)


def losses(side: str, mlp: str = "swiglu", qk_norm: bool = False, rows: int = TOY.rows, **sizes) -> list[float]:
    config = ModelConfig(preset=TOY.preset, mlp=mlp, qk_norm=qk_norm, residual_init="scaled", **sizes)
    built = SIDES[side](Setting(config, TOY.vocab_size, TOY.length, rows, PARAMS, "cpu", compiled=False))
    return [float(built.step(step_batches(TOY, rows, number % 4, False), number)) for number in range(4)]


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
def test_ours_and_transformers_begin_alike_and_learn_alike(qk_norm):
    ours, theirs = losses("ours", qk_norm=qk_norm), losses("transformers", qk_norm=qk_norm)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours == pytest.approx(theirs, abs=1e-3), "but for the decay of gains and embedding, it is one training"


def test_gpt2_stands_for_a_decoder_without_a_gate():
    assert losses("transformers", mlp="gelu")[0] == pytest.approx(losses("ours", mlp="gelu")[0], abs=0.1)


def test_the_micro_batch_changes_no_loss():
    assert losses("ours", rows=3) == pytest.approx(losses("ours", rows=8), abs=1e-5)


@pytest.mark.parametrize("side", ["litgpt", "torchtitan"])
def test_other_peers_begin_alike_where_they_are_installed(side):
    pytest.importorskip(side)
    assert losses(side) == pytest.approx(losses("ours"), abs=1e-3)


def test_the_toy_form_measures_everything(tmp_path, monkeypatch, capsys):
    out = tmp_path / "toy.json"
    monkeypatch.setattr(sys, "argv", ["training", "--toy", "--out", str(out)])
    training.main()
    printed = capsys.readouterr().out
    assert "loader: rows of" in printed and "head: ours" in printed and "FAILED" not in printed
    found = json.loads(out.read_text())
    assert [row["side"] for row in found] == ["ours"] * 4
    assert all(row["tokens_per_s"] > 0 and row["last_loss"] < row["first_loss"] + 0.1 for row in found)
