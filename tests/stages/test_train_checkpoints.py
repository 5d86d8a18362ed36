"""What a training leaves on the disk while it goes on: which checkpoints, what they hold, and when."""

from pathlib import Path

import torch

from model.decoder import Decoder
from stages.checkpoint import problem_of
from stages.train.optimizers import Optimizers
from stages.train.state import Checkpoints, TrainState
from tests.stages.test_train import MODEL, TRAIN


class Averages:
    """A component as a hook would have it: one tensor."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.mean = tensors["mean"]


def parts() -> tuple[Decoder, Optimizers]:
    model = Decoder(MODEL, 61, 16)
    return model, Optimizers(model, TRAIN)


def test_tensors_of_a_component_come_back_by_name(tmp_path: Path):
    model, optimizers = parts()
    checkpoints = Checkpoints(tmp_path, {})
    written, read = Averages(), Averages()
    written.mean = torch.tensor([1.0, 2.0, 3.0])
    checkpoints.save(TrainState(step=4), model, optimizers, {}, {"averages": written})
    folder = checkpoints.newest()
    assert folder is not None and (folder / "averages.safetensors").exists() and problem_of(folder) is None
    assert checkpoints.load(folder, model, optimizers, {"averages": read}) == TrainState(step=4)
    assert torch.equal(read.mean, written.mean)


def test_a_component_that_the_checkpoint_does_not_hold_stays_as_it_was_built(tmp_path: Path):
    model, optimizers = parts()
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(TrainState(), model, optimizers, {}, {})
    averages = Averages()
    checkpoints.load(checkpoints.path(0), model, optimizers, {"averages": averages})
    assert torch.equal(averages.mean, torch.zeros(3))
