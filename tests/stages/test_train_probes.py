"""Probes: each figure against another way to compute it, and a training that does not notice them."""

import csv
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from stages.order import data_order
from stages.perplexity import to_tensors
from stages.tokens import TokenRows
from stages.train import stage
from stages.train.feasible import infeasible
from stages.train.probes import HEADER, MEASURES, Probes, layer_of
from tests.stages.conftest import CONTEXT
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, job_in, run_in

PROBED = TRAIN.model_copy(update={"probe_interval": 4})
ROWS = TRAIN.batch_tokens // CONTEXT


def table(out: Path) -> dict[tuple[int, str], dict[str, str]]:
    with (out / "probes.csv").open() as file:
        return {(int(row["step"]), row["layer"]): row for row in csv.DictReader(file)}


def elsewhere(tmp_path_factory, **changes):
    """The execution, in a scratch folder that knows of no other run."""
    return EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch")), **changes})


def same_but_for_probes(one: Path, other: Path) -> None:
    for name in ("loss.csv", "last/model.safetensors", "last/optimizer.safetensors", "metrics.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def plain(packed: Path, tmp_path_factory) -> Path:
    out = run_in(packed, TRAIN, elsewhere(tmp_path_factory))
    kept = tmp_path_factory.mktemp("plain") / "train"
    return out.rename(kept)


def test_a_training_has_the_same_bytes_with_probes_and_without(packed, plain, tmp_path_factory):
    assert (plain / "probes.csv").read_text() == HEADER
    probed = run_in(packed, PROBED, elsewhere(tmp_path_factory))
    same_but_for_probes(plain, probed)
    layers = ["embedding", "0", "1", "head"]
    assert list(table(probed)) == [(step, layer) for step in (4, 8, 12) for layer in layers]
    blank = {layer: [name for name in MEASURES if not row[name]] for (_, layer), row in table(probed).items()}
    assert blank["0"] == blank["1"] == []
    assert blank["head"] == blank["embedding"] == ["activation_rms", "attention_logit_max", "dead_units"]
    rows = (probed / "probes.csv").read_bytes()
    spread = run_in(packed, PROBED, elsewhere(tmp_path_factory, micro_batch=2))
    assert list(table(spread)) == list(table(probed))
    assert [float(row["attention_logit_max"] or 0) for row in table(spread).values()] == pytest.approx(
        [float(line.split(b",")[5] or 0) for line in rows.splitlines()[1:]], rel=1e-3
    )


def test_every_figure_is_what_a_plain_computation_gives(packed, tmp_path_factory, monkeypatch):
    """At the last step, whose weights are those of the checkpoint `last`, and whose gradient is taken again."""
    params = PROBED.model_copy(update={"grad_clip": 0.1})  # so that clipping is felt
    seen = {}
    real = Probes.before_update

    def keep(hook, run, step, grad_norm):
        seen["weights"] = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        seen["model"] = run.model
        real(hook, run, step, grad_norm)

    monkeypatch.setattr(Probes, "before_update", keep)
    out = run_in(packed, params, elsewhere(tmp_path_factory))
    found = {layer: row for (step, layer), row in table(out).items() if step == 12}
    model = seen["model"]
    rows = TokenRows(packed / "data/pack/train")
    batch = rows.batch(data_order(rows.n_rows, params.seed, 11 * ROWS, ROWS))
    inputs, labels, segments, positions = to_tensors(batch, "cpu")

    lengths = {layer: [0.0, 0.0] for layer in found}
    for name, parameter in model.named_parameters():
        before = seen["weights"][name]
        lengths[layer_of(name)][0] += float((parameter.detach() - before).double().square().sum())
        lengths[layer_of(name)][1] += float(before.double().square().sum())
    for layer, (moved, weight) in lengths.items():
        assert float(found[layer]["update_to_weight"]) == pytest.approx((moved / weight) ** 0.5, rel=1e-4)

    model.eval()
    context, x, states = model.context(inputs, segments, positions), model.embed(inputs, positions), []
    for layer, block in enumerate(model.blocks):
        q, k, _ = block.attention.project(block.attention_norm(x), context)
        scores = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2) * block.attention.scale
        causal = torch.ones(CONTEXT, CONTEXT).tril().bool()
        sees = causal & (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, :, None]
        largest = float(scores.detach().masked_fill(~sees[:, None], -torch.inf).max())
        assert float(found[str(layer)]["attention_logit_max"]) == pytest.approx(largest, rel=1e-4)
        x, _ = block(x, context)
        states.append(x[segments >= 0].detach())
        assert float(found[str(layer)]["activation_rms"]) == pytest.approx(
            float(states[-1].square().mean().sqrt()), rel=1e-4
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(seen["weights"][name])
    model.zero_grad()
    logits = model.logits(model.hidden(inputs, model.context(inputs, segments, positions)))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
    for layer, row in found.items():
        mine = [p.grad.square().sum() for name, p in model.named_parameters() if layer_of(name) == layer]
        assert float(row["gradient_norm"]) == pytest.approx(float(sum(mine)) ** 0.5, rel=1e-3)


def test_units_that_nothing_excites_are_dead(packed, tmp_path_factory, monkeypatch):
    model = ModelConfig(n_layers=1, hidden_size=32, n_heads=2, n_kv_heads=2, mlp="relu2", bias=True)
    real = Probes.start

    def kill(hook, run):
        with torch.no_grad():
            run.model.blocks[0].mlp.up.bias[:32] = -1e4
        real(hook, run)

    monkeypatch.setattr(Probes, "start", kill)
    job = job_in(packed, PROBED, elsewhere(tmp_path_factory))
    job.prepare()
    stage.run(job, model, PROBED)
    width = model.width_of_mlp
    share = float(table(job.staging)[4, "0"]["dead_units"])
    assert 32 / width <= share < 32 / width + 0.2


def test_an_interrupted_run_has_each_probe_once(packed, tmp_path_factory, monkeypatch):
    whole = (run_in(packed, PROBED, elsewhere(tmp_path_factory)) / "probes.csv").read_text()
    execution, real = elsewhere(tmp_path_factory), Probes.after_step

    def fail(hook, run, result):
        real(hook, run, result)
        if run.state.step == 8:  # after the checkpoint of step 5
            raise KeyboardInterrupt

    monkeypatch.setattr(Probes, "after_step", fail)
    with job_in(packed, PROBED, execution).scratch() as folder, pytest.raises(KeyboardInterrupt):
        stage.train_in(job_in(packed, PROBED, execution), MODEL, PROBED, folder)
    monkeypatch.setattr(Probes, "after_step", real)
    assert (run_in(packed, PROBED, execution) / "probes.csv").read_text() == whole


def test_parameters_in_parts_are_refused_before_any_work():
    sharded = EXECUTION.model_copy(update={"sharding": "full", "n_processes": 2})
    (problem,) = infeasible(MODEL, PROBED.model_copy(update={"optimizer": "adamw"}), sharded, 8)
    assert "set train.probe_interval to 0" in problem.problem
