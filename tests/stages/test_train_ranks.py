"""N ranks train as one does: the same rows in every step, the same losses and weights up to rounding."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.checkpoint import checkpoints_in
from stages.tokens import Batch, TokenRows
from stages.train.batches import Batches
from stages.train.parts import stored
from tests.stages.ranks import train_all
from tests.stages.test_train import TRAIN

pytestmark = pytest.mark.slow

STEPS = {"double": 20, "single": 50}
WORLDS = (2, 4)


def scenarios() -> list[dict]:
    steady = {**TRAIN.model_dump(), "max_steps": 20, "eval_interval": 10}
    # the mean of the gradient after one step of AdamW is a tenth of it where nothing is clipped
    long = {**steady, "max_steps": 50, "optimizer": "adamw", "grad_clip": 0.0, "lr": 0.003}
    short = {**steady, "max_steps": 8}
    doubles = [{"folder": f"double-{w}", "world": w, "train": steady, "double": True} for w in (1, *WORLDS)]
    singles = [{"folder": f"single-{w}", "world": w, "train": long} for w in (1, 4)]
    firsts = [{**one, "folder": f"first-{one['world']}", "stop": 1, "interval": 1} for one in singles]
    switched = [{"folder": "switched", "world": w, "train": steady, "stop": stop, "double": True}
                for w, stop in ((4, 5), (1, 11), (2, 0))]  # fmt: skip
    broken = [{"folder": "broken", "world": 2, "train": short, "nan": [1, 3]}]
    return [*doubles, *singles, *firsts, *switched, *broken]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one scratch folder for every scenario."""
    return train_all(tmp_path_factory.mktemp("ranks"), scenarios(), validation_documents=40)


def losses(folder: Path) -> dict[int, float]:
    with (folder / "loss.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


def tensors(folder: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return {key: tensor.whole() for key, tensor in stored(checkpoints_in(folder)[step], name).items()}


class Recording(TokenRows):
    """Training rows that remember which of them were read."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.read: list[int] = []

    def batch(self, row_ids: np.ndarray, *how: Any) -> Batch:
        self.read += row_ids.tolist()
        return super().batch(row_ids, *how)


def rows_of_step(packed: Path, step: int, world: int, start: int = 0) -> list[int]:
    """What all ranks read in a step, in the order of the global batch, of batches that begin at `start`."""
    in_order = [0] * 8
    for rank in range(world):
        rows = Recording(packed / "data/pack/train")
        batches = Batches(rows, seed=3, rows_per_step=8, rank=rank, world=world, micro_batch=3, start=start)
        batches._ahead.result()
        rows.read.clear()
        batches.at(step)
        in_order[rank::world] = rows.read
        batches.close()
    return in_order


def test_every_step_has_the_same_rows_for_1_2_4_and_8_ranks_also_when_their_number_changes(packed: Path):
    for step in range(12):
        alone = rows_of_step(packed, step, 1)
        for world in (2, 4, 8):
            assert rows_of_step(packed, step, world) == alone
        assert rows_of_step(packed, step, world=(4, 1, 8, 2)[step // 3], start=step) == alone


@pytest.mark.parametrize("world", WORLDS)
def test_in_float64_losses_and_weights_are_those_of_one_rank(trained: Path, world: int):
    one, several = (losses(trained / f"double-{w}") for w in (1, world))
    assert len(one) == STEPS["double"] and one.keys() == several.keys()
    weights, others = (tensors(trained / f"double-{w}", STEPS["double"]) for w in (1, world))
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-9)
    for step, loss in one.items():  # the file has eight digits
        assert several[step] == pytest.approx(loss, abs=1e-7)
    states = [json.loads((checkpoints_in(trained / f"double-{w}")[20] / "state.json").read_text()) for w in (1, world)]
    for name in ("smoothed", "validation_loss", "best_validation_loss"):
        assert states[1][name] == pytest.approx(states[0][name], abs=1e-9)


def test_in_fp32_the_first_gradient_and_fifty_losses_are_those_of_one_rank(trained: Path):
    gradients, others = (tensors(trained / f"first-{w}", 1, "optimizer") for w in (1, 4))
    means = [name for name in gradients if name.startswith("adamw.exp_avg.")]
    norm = torch.cat([gradients[name].flatten() for name in means]).norm()
    difference = torch.cat([(others[name] - gradients[name]).flatten() for name in means]).norm()
    assert norm > 0 and difference <= 1e-6 * norm
    one, several = (losses(trained / f"single-{w}") for w in (1, 4))
    assert len(one) == STEPS["single"]
    np.testing.assert_allclose([several[step] for step in one], list(one.values()), atol=1e-4)


def test_the_number_of_ranks_may_change_in_mid_run(trained: Path):
    assert {6, 12} <= checkpoints_in(trained / "switched").keys()  # from 4 ranks to 1 and to 2
    weights, others = tensors(trained / "double-1", 20), tensors(trained / "switched", 20)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-9)


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(trained: Path):
    folder = trained / "broken"
    state = json.loads((checkpoints_in(folder)[8] / "state.json").read_text())
    trace = losses(folder)
    assert state["skipped_steps"] == 1 and state["consecutive_skipped"] == 0 and state["step"] == 8
    assert [step for step, loss in trace.items() if not math.isfinite(loss)] == [3]
