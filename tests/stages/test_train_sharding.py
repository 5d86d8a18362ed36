"""FSDP2 (`execution.sharding: full`) trains as one rank does, in less memory, and checkpoints do not show it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoder import Decoder
from stages.checkpoint import checkpoints_in
from stages.errors import BadInput
from stages.train.params import TrainParams
from stages.train.sharding import refuse
from tests.stages.ranks import train_all
from tests.stages.test_train import EXECUTION, MODEL, TRAIN
from tests.stages.test_train_ranks import losses, tensors

STEPS = 10
OPTIMIZERS = ("adamw", "lion", "muon")
# 12 rows a step: 1, 2 and 3 ranks share them. 33 rows of validation: 17 and 16 for two ranks, in passes of 16.
STEADY = {**TRAIN.model_dump(), "max_steps": STEPS, "batch_tokens": 192, "eval_interval": 5, "validation_tokens": 528}
FULL = {"sharding": "full"}
# Rows that 2 and 3 do not divide (alpha of dyt has one), a head of its own
UNEVEN = {"norm": "dyt", "tie_embeddings": False, "post_norm": True}


def scenario(folder: str, world: int, execution: dict | None = None, **more) -> dict:
    train = {**STEADY, **more.pop("train", {})}
    return {"folder": folder, "world": world, "train": train, "execution": execution or {}, **more}


def scenarios() -> list[dict]:
    found = []
    for name in OPTIMIZERS:
        train = {"optimizer": name, "lr": 0.003, "lion_lr": 0.001, "ema_decay": 0.9 if name == "muon" else 0.0}
        found.append(scenario(f"{name}-1", 1, double=True, train=train))
        found.append(scenario(f"{name}-full", 2, FULL, double=True, train=train))
    found += [scenario("uneven-1", 1, double=True, model=UNEVEN),
              scenario("uneven-full", 3, {**FULL, "micro_batch": 2, "activation_checkpointing": "full"},
                       double=True, model=UNEVEN)]  # fmt: skip
    train = {"optimizer": "muon", "lr": 0.003, "lion_lr": 0.001, "ema_decay": 0.9}
    found += [scenario("switched", world, execution, double=True, train=train, stop=stop)
              for world, execution, stop in ((2, FULL, 2), (1, {}, 5), (3, FULL, 0))]  # fmt: skip
    for name, execution in (("ddp", {}), ("full", FULL)):
        found.append(scenario(f"single-{name}", 2, execution))
        found.append(scenario(f"bf16-{name}", 2, {**execution, "micro_batch": 2}, train={"precision": "bf16"}))
    return [*found, scenario("broken", 2, FULL, nan=[1, 3])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one scratch folder for every scenario."""
    return train_all(tmp_path_factory.mktemp("sharding"), scenarios(), validation_documents=60)


def state(folder: Path) -> dict:
    return json.loads((checkpoints_in(folder)[STEPS] / "state.json").read_text())


def assert_equal(one: Path, other: Path, weights: float, loss: float) -> None:
    """Losses of every step and of validation, weights (averaged ones too), and states of the optimizer."""
    expected, found = losses(one), losses(other)
    assert len(expected) == STEPS and expected.keys() == found.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=loss)
    assert state(other)["validation_loss"] == pytest.approx(state(one)["validation_loss"], abs=loss)
    for name in ("model", "optimizer", "raw"):
        expected, found = tensors(one, STEPS, name), tensors(other, STEPS, name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_float64_losses_weights_and_states_are_those_of_one_rank(trained: Path, optimizer: str):
    assert_equal(trained / f"{optimizer}-1", trained / f"{optimizer}-full", weights=1e-12, loss=1e-7)


def test_also_of_rows_that_the_ranks_do_not_divide_with_accumulation_and_checkpointed_activations(trained: Path):
    assert_equal(trained / "uneven-1", trained / "uneven-full", weights=1e-12, loss=1e-7)


def test_a_checkpoint_goes_on_with_another_number_of_ranks_in_parts_or_whole(trained: Path):
    assert {3, 6} <= checkpoints_in(trained / "switched").keys()  # from parts on 2 ranks to one rank and to 3 parts
    assert_equal(trained / "muon-1", trained / "switched", weights=1e-12, loss=1e-7)


def test_in_fp32_they_are_those_of_ddp_up_to_rounding(trained: Path):
    assert_equal(trained / "single-ddp", trained / "single-full", weights=2e-6, loss=2e-6)


def test_in_bf16_losses_are_those_of_ddp_up_to_the_rounding_of_gains(trained: Path):
    ddp, full = (list(losses(trained / f"bf16-{name}").values()) for name in ("ddp", "full"))
    np.testing.assert_allclose(full, ddp, rtol=0, atol=0.002)
    assert state(trained / "bf16-full")["validation_loss"] == pytest.approx(
        state(trained / "bf16-ddp")["validation_loss"], abs=0.002
    )
    assert all(tensor.dtype == torch.float32 for tensor in tensors(trained / "bf16-full", STEPS).values())


def test_each_of_two_ranks_holds_half(trained: Path):
    def held(folder: str, rank: int) -> dict[str, int]:
        return json.loads((trained / folder / f"bytes-{rank}.json").read_text())

    for kind in ("parameters", "states"):
        whole, parts = held("single-ddp", 0)[kind], [held("single-full", rank)[kind] for rank in (0, 1)]
        assert whole / 2 <= max(parts) < 0.51 * whole
        assert sum(parts) < 1.01 * whole  # counts of steps are held by both


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_both(trained: Path):
    assert state(trained / "broken")["skipped_steps"] == 1
    assert [step for step, loss in losses(trained / "broken").items() if not np.isfinite(loss)] == [3]


@pytest.mark.parametrize(("model", "train", "world", "named"), [
    (MODEL, {"optimizer": "adamw_8bit"}, 2, "set train.optimizer to one of adamw, lion, muon"),
    (MODEL, {}, 3, "set train.batch_tokens to a multiple of 3 rows"),
    (ModelConfig(n_layers=1, hidden_size=32, n_heads=4, n_experts=4), {}, 2, "set model.n_experts to 0"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_by_the_names_of_its_params(model, train, world, named):
    with pytest.raises(BadInput, match=r"^params.yaml: execution.sharding is full, but ") as refused:
        params = TrainParams(**{**TRAIN.model_dump(), **train})
        refuse(Decoder(model, 61, 16), params, EXECUTION, rows_per_step=8, world=world)
    assert named in str(refused.value) and "execution.sharding to none" in str(refused.value)
