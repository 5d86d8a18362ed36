"""Steps whose loss jumps or is not finite are named with their documents, also after an interruption."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import Failed
from stages.order import data_order
from stages.tokens import TokenRows
from stages.train import stage
from stages.train.spikes import Spikes, height
from tests.stages.conftest import CONTEXT
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, job_in, run_in

# Any loss above the median counts, so that some steps of a short run do.
EASILY = EXECUTION.model_copy(update={"spike_threshold": 1e-9})
TRAIN_LONGER = TRAIN.model_copy(update={"max_steps": 30, "lr": 1e-6, "muon_lr": 1e-6})  # flat, but for noise


def spikes(out) -> list[dict]:
    return [json.loads(line) for line in (out / "monitor/spikes.jsonl").read_text().splitlines()]


def write_names(root, n_documents: int) -> None:
    """What pack writes: document number i is named d-i; one in ten is not taken and has no number."""
    rows = [(f"d-{number}", 1) for number in range(n_documents)]
    for place in range(0, n_documents, 10):
        rows.insert(place, (f"left out {place}", 0))
    (root / "data/pack/documents").mkdir(parents=True)
    names, copies = zip(*rows, strict=True)
    table = pa.table({"id": names, "copies": pa.array(copies, pa.uint16())})
    pq.write_table(table, root / "data/pack/documents/train.parquet")


def test_the_height_is_measured_in_deviations_of_the_noise():
    noise = np.random.default_rng(0).normal(0, 0.1, 32)
    flat = list(3 + noise)
    assert height([*flat, 4.0]) == pytest.approx(10, rel=0.4)
    assert abs(height([*flat, 3.1])) < 3
    falling = list(5 - np.arange(32) / 16 + noise)
    assert height([*falling, 3.0]) < 0
    assert height([*falling, 5.0]) > 6  # the fall is no noise
    assert height([*flat[:-1], 9.0, 4.0]) > 6  # nor is an earlier spike
    assert height([3.0, 9.0]) == 0.0  # too few
    assert height([3.0] * 32 + [3.0]) == 0.0


def test_a_spike_names_its_step_its_rows_and_their_documents(packed):
    write_names(packed, 300)
    out = run_in(packed, TRAIN_LONGER, EASILY)
    found = spikes(out)
    assert found and all(record["step"] > 16 for record in found)
    rows, record = TokenRows(packed / "data/pack/train"), found[0]
    per_step = TRAIN.batch_tokens // CONTEXT
    order = data_order(rows.n_rows, TRAIN.seed, (record["step"] - 1) * per_step, per_step).tolist()
    assert record["rows"] == order
    documents = record["documents"]
    assert {document["id"] for document in documents} == {
        f"d-{number}" for row in order for number in rows.origins(row)[0]
    }
    assert sum(document["labels"] for document in documents) == rows.n_labels(np.array(order))
    assert [document["loss"] for document in documents] == sorted((d["loss"] for d in documents), reverse=True)
    mean = sum(document["loss"] * document["labels"] for document in documents) / rows.n_labels(np.array(order))
    assert mean == pytest.approx(record["loss"], abs=1e-3)  # the rate is so small that the weights are the same
    line = f"step {record['step']} SPIKE of {record['deviations']:.1f} deviations"
    assert line in (out / "training.log").read_text()


def test_without_ids_the_numbers_of_the_documents_are_told(packed):
    documents = spikes(run_in(packed, TRAIN_LONGER, EASILY))[0]["documents"]
    assert all(isinstance(document["id"], int) for document in documents)


def test_steps_that_are_not_finite_name_their_documents(packed):
    params = TRAIN.model_copy(update={"lr": 1e38, "muon_lr": 1e38, "max_skipped_steps": 2})
    with pytest.raises(Failed):
        run_in(packed, params)
    with job_in(packed, params).scratch() as folder:
        found = [json.loads(line) for line in (folder / "monitor/spikes.jsonl").read_text().splitlines()]
    assert found[0]["loss"] == "nan" or found[0]["grad_norm"] in ("nan", "inf")
    assert found[0]["documents"]


def test_the_detector_changes_no_bit_and_can_be_switched_off(packed, tmp_path_factory):
    ours = run_in(packed, TRAIN_LONGER, EASILY)
    bytes_of = {name: (ours / name).read_bytes() for name in ("last/manifest.json", "loss.csv")}
    off = {"spike_threshold": 0, "scratch": str(tmp_path_factory.mktemp("scratch"))}
    without = run_in(packed, TRAIN_LONGER, EXECUTION.model_copy(update=off))
    assert not spikes(without)
    assert {name: (without / name).read_bytes() for name in bytes_of} == bytes_of


def test_an_interrupted_run_tells_the_same_spikes_once(packed, tmp_path_factory, monkeypatch):
    whole = (run_in(packed, TRAIN_LONGER, EASILY) / "monitor/spikes.jsonl").read_text()
    job = job_in(packed, TRAIN_LONGER, EASILY.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))}))
    real = Spikes.after_step

    def fail(hook, run, result):
        real(hook, run, result)
        if run.state.step == 23:  # after the checkpoint of step 20
            raise KeyboardInterrupt

    monkeypatch.setattr(Spikes, "after_step", fail)
    with job.scratch() as folder, pytest.raises(KeyboardInterrupt):
        stage.train_in(job, MODEL, TRAIN_LONGER, folder)
    monkeypatch.setattr(Spikes, "after_step", real)
    assert (run_in(packed, TRAIN_LONGER, job.execution) / "monitor/spikes.jsonl").read_text() == whole
