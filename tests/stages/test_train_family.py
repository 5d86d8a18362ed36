"""Training holds its promises for every kind of model: ranks, micro-batches, interruption, first weights."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from stages.checkpoint import load_model
from stages.entry import Job
from stages.errors import BadInput, Stopped
from stages.execution import Execution
from stages.train import hooks, stage
from tests.stages.conftest import VOCABULARY
from tests.stages.test_first_weights import drawn, export_folder
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, losses, weights

KINDS = {
    "experts": {"n_experts": 4, "n_shared_experts": 1, "expert_size": 16, "balance_loss": 0.1},
    "hybrid": {"layer_pattern": "swa,mla", "window": 5, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
               "qk_rope_head_dim": 4, "v_head_dim": 8},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False},
    "dropout": {"dropout": 0.2},
}  # fmt: skip


def train_model(root, model: ModelConfig, execution: Execution = EXECUTION, **changes):
    train = TRAIN.model_copy(update=changes)
    job = Job("train", root, execution, ("data/pack/train", "data/pack/validation"), {"model": model, "train": train})
    job.prepare()
    stage.run(job, model, train)
    job.publish()
    return job.out


def beside(packed, root):
    """Another workspace on the same packed data."""
    (root / "data").mkdir(parents=True)
    (root / "data/pack").symlink_to(packed / "data/pack")
    return root


def stop_at_seven(patched):
    """Training ends after its seventh step, as if somebody had stopped it."""
    after_step = hooks.Checkpoint.after_step

    def stop(self, run, result):
        after_step(self, run, result)
        if run.state.step == 7:
            raise Stopped("here")

    patched.setattr(hooks.Checkpoint, "after_step", stop)


@pytest.mark.parametrize("kind", ["experts", "hybrid"])
def test_micro_batches_and_ranks_change_rounding_alone(packed, tmp_path, kind):
    model = dataclasses.replace(MODEL, **KINDS[kind])
    traces = []
    for number, changes in enumerate(({"micro_batch": 8}, {"micro_batch": 1}, {"n_processes": 2})):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "data").symlink_to(packed / "data") if number == 0 else (root / "data").mkdir()
        if number:
            (root / "data/pack").symlink_to(packed / "data/pack")
        traces.append(losses(train_model(root, model, EXECUTION.model_copy(update=changes))))
    for trace in traces[1:]:
        np.testing.assert_allclose(trace, traces[0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["experts", "dropout"])
def test_interrupted_it_ends_with_the_same_bits(packed, tmp_path, kind, monkeypatch):
    model = dataclasses.replace(MODEL, **KINDS[kind])
    whole = weights(train_model(packed, model))
    other = beside(packed, tmp_path / "other")
    with monkeypatch.context() as patched:
        stop_at_seven(patched)
        with pytest.raises(Stopped):
            train_model(other, model)
    resumed = weights(train_model(other, model))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(packed, kind):
    trace = losses(train_model(packed, dataclasses.replace(MODEL, **KINDS[kind]), max_steps=40, lr=0.01))
    assert trace[0] == pytest.approx(math.log(VOCABULARY), abs=0.15)
    assert trace[-1] < trace[0] - 0.4


def test_what_the_model_costs_is_said_at_the_start(packed, capsys):
    train_model(packed, dataclasses.replace(MODEL, **KINDS["hybrid"]), max_steps=3)
    parameters = json.loads((packed / "data/train/metrics.json").read_text())["parameters"]
    cache = "64 bytes a swa layer (of the last 5 and first 4 alone), 40 bytes an mla layer, 128 with MHA"
    expected = f"train: {parameters:,} parameters; a token in the cache (bf16; twice in fp32, as on CPUs): {cache}"
    assert expected in "".join(capsys.readouterr())


def test_the_loss_that_is_logged_is_cross_entropy_alone(packed):
    model = dataclasses.replace(MODEL, n_experts=4, balance_loss=10.0, router_z_loss=10.0)
    assert losses(train_model(packed, model, z_loss=10.0))[0] == pytest.approx(math.log(VOCABULARY), abs=0.15)


@pytest.mark.parametrize("own", [False, True], ids=["of transformers", "of our own code"])
def test_training_starts_from_a_folder_wherever_it_lies(packed, tmp_path, own):
    """At a rate of nothing, what is published is what was in the folder; and no byte tells where that was."""
    config = dataclasses.replace(MODEL, **(KINDS["hybrid"] if own else {}))
    decoder = drawn(config)
    outputs = []
    for name, folder in (("here", "theirs"), ("there", str(tmp_path / "elsewhere"))):
        root = beside(packed, tmp_path / name)
        start = export_folder(root / folder, decoder, own)
        execution = EXECUTION.model_copy(update={"init_from": folder})
        outputs.append(train_model(root, start, execution, max_steps=3, lr=1e-30, muon_lr=1e-30, weight_decay=0.0))
    found, wanted = weights(outputs[0]), decoder.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name][:VOCABULARY], tensor[:VOCABULARY], msg=name)
    for folder in ("best", "last"):
        files = sorted(path.name for path in (outputs[0] / folder).iterdir())
        assert [(outputs[0] / folder / n).read_bytes() for n in files] == [
            (outputs[1] / folder / n).read_bytes() for n in files
        ]
    described = json.loads((outputs[0] / "best/config.json").read_text())["model"]
    assert described["init_sha256"] == start.init_sha256
    assert load_model(outputs[0] / "best").config.init_sha256 == start.init_sha256


def test_a_folder_that_is_not_what_the_params_say_is_refused(packed, tmp_path):
    start = export_folder(tmp_path / "theirs", drawn(MODEL))
    execution = EXECUTION.model_copy(update={"init_from": str(tmp_path / "theirs")})
    with pytest.raises(BadInput, match=re.escape("another architecture; set model.n_layers=2")):
        train_model(packed, dataclasses.replace(start, n_layers=3), execution)


def test_a_training_that_has_begun_goes_on_without_the_folder(packed, tmp_path, monkeypatch):
    start = export_folder(tmp_path / "theirs", drawn(MODEL))
    execution = EXECUTION.model_copy(update={"init_from": str(tmp_path / "theirs")})
    whole = weights(train_model(beside(packed, tmp_path / "other"), start, execution))
    with monkeypatch.context() as patched:
        stop_at_seven(patched)
        with pytest.raises(Stopped):
            train_model(packed, start, execution)
    shutil.rmtree(tmp_path / "theirs")
    resumed = weights(train_model(packed, start, EXECUTION))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(BadInput, match="model.init_sha256: names first weights, .*; set execution.init_from to their"):
        train_model(packed, start, EXECUTION, max_steps=13)


def test_a_backend_that_cannot_is_refused_before_training(packed):
    with pytest.raises(
        BadInput, match="params.yaml: execution.attention_backend flex: flex runs on GPUs only; set it to auto$"
    ):
        train_model(packed, MODEL, EXECUTION.model_copy(update={"attention_backend": "flex"}))
