"""train.ema_decay: what is published is the moving average, and training goes on from the weights behind it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model.decoder import Decoder
from stages.checkpoint import load_model
from stages.perplexity import document_losses
from stages.tokens import TokenRows
from stages.train.average import WeightAverage, decay_at
from tests.stages.interruptions import interrupt_behind
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, job_in, losses, run_in, weights
from tests.stages.test_train_resume import KEEPING, begun_with, checkpoint
from tests.stages.test_train_samples import write_tokenizer

AVERAGED = TRAIN.model_copy(update={"ema_decay": 0.9, "lr": 0.01, "validation_tokens": 1 << 20})
RUNNING = TRAIN.model_copy(update={"lr": 0.01, "validation_tokens": 1 << 20})


def test_the_average_follows_its_formula_and_a_skipped_step_leaves_it():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average, expected = WeightAverage(model, 0.5), 0.0
    average.begin()
    assert average.beside["weight"].item() == 0.0
    for step, (weight, finite) in enumerate([(1.0, True), (4.0, False), (2.0, True), (3.0, True)] * 4):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.update(step, torch.tensor(finite))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight if finite else expected
        assert average.beside["weight"].item() == pytest.approx(expected, abs=1e-6)
    assert decay_at(0, 0.999) == 0.1 and decay_at(10**6, 0.999) == 0.999


def test_model_and_average_change_places_and_come_back_bit_for_bit():
    model = Decoder(MODEL, 61, 16)
    model.initialise(torch.Generator().manual_seed(0))
    average = WeightAverage(model, 0.9)
    average.begin()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in average.beside.values():
            tensor += 1
    with average.in_model():
        assert torch.equal(model.embedding.weight, before["embedding.weight"] + 1)
        assert torch.equal(average.tensors()["embedding.weight"], before["embedding.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_is_the_same_and_what_is_published_is_the_average(packed):
    plain_losses, plain = losses(out := run_in(packed, RUNNING)), weights(out)
    out = run_in(packed, AVERAGED)
    assert losses(out) == plain_losses
    raw = load_file(out / "last/raw.safetensors")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in raw.items())
    assert not torch.equal(weights(out)["embedding.weight"], raw["embedding.weight"])


def test_its_validation_loss_is_that_of_the_published_model_and_the_other_stands_beside_it(packed):
    alone = json.loads((run_in(packed, RUNNING) / "metrics.json").read_text())
    out = run_in(packed, AVERAGED)
    metrics = json.loads((out / "metrics.json").read_text())
    again = document_losses(load_model(out / "last"), TokenRows(packed / "data/pack/validation"), "cpu")
    assert metrics["validation_loss"] == pytest.approx(again.mean, abs=1e-6)
    assert metrics["validation_loss_raw"] == alone["validation_loss"]
    assert "validation_loss_raw" not in alone
    assert f"raw {alone['validation_loss']:.4f}" in (out / "training.log").read_text().splitlines()[-1]


@pytest.mark.parametrize("stop", [0, 5, 8])
def test_interrupted_it_ends_with_the_same_bytes(packed, tmp_path_factory, monkeypatch, stop):
    names = ("last/manifest.json", "best/manifest.json", "loss.csv", "metrics.json")
    expected = {name: (run_in(packed, AVERAGED) / name).read_bytes() for name in names}
    job = job_in(packed, AVERAGED, EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))}))
    interrupt_behind(monkeypatch, job, AVERAGED, stop)
    resumed = run_in(packed, AVERAGED, job.execution)
    assert {name: (resumed / name).read_bytes() for name in names} == expected


def test_several_ranks_average_stop_early_and_tell_the_same(packed, tmp_path_factory):
    """Everything on: a hook that acted on one rank alone would leave the others waiting."""
    write_tokenizer(packed)
    train = AVERAGED.model_copy(update={"max_steps": 40, "lr": 1e-6, "muon_lr": 1e-6, "patience": 5, "min_delta": 0.5})
    told = []
    for n_processes in (1, 2):
        scratch = str(tmp_path_factory.mktemp("scratch"))
        everything = {"sample_prompts": ["w5"], "sample_tokens": 3, "spike_threshold": 1e-9, "profile": 2}
        execution = EXECUTION.model_copy(update={**everything, "n_processes": n_processes, "scratch": scratch})
        out = run_in(packed, train, execution)
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["steps"] == 20
        spikes = [json.loads(line) for line in (out / "monitor/spikes.jsonl").read_text().splitlines()]
        told.append((weights(out), metrics, [(spike["step"], spike["rows"]) for spike in spikes]))
    (alone, metrics, spikes), (together, same_metrics, same_spikes) = told
    assert all(torch.allclose(tensor, together[name], atol=1e-5) for name, tensor in alone.items())
    assert same_metrics["validation_loss"] == pytest.approx(metrics["validation_loss"], abs=1e-4)
    assert spikes == same_spikes


def test_a_branch_goes_on_from_the_weights_behind_the_average_and_keeps_averaging(packed):
    steady = AVERAGED.model_copy(update={"schedule": "constant"})
    longer = steady.model_copy(update={"max_steps": 20})
    source = checkpoint(packed, steady, 12)
    branch = run_in(packed, begun_with(source, steady, max_steps=20), KEEPING)
    ends = {name: load_file(branch / f"last/{name}.safetensors") for name in ("model", "raw")}
    whole = run_in(packed, longer, KEEPING)
    for name, tensors in ends.items():
        expected = load_file(whole / f"last/{name}.safetensors")
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items()), name


def test_a_branch_that_begins_to_average_begins_with_the_weights_of_its_checkpoint(packed):
    steady = RUNNING.model_copy(update={"schedule": "constant"})
    source = checkpoint(packed, steady, 12)
    branch = run_in(packed, begun_with(source, steady, max_steps=13, ema_decay=0.999), KEEPING)
    average, start, end = (
        weights(branch),
        load_file(source / "model.safetensors"),
        load_file(branch / "last/raw.safetensors"),
    )
    decay = decay_at(12, 0.999)
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, decay * start[name] + (1 - decay) * end[name], atol=1e-6, rtol=1e-5)
