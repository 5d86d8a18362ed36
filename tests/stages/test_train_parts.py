"""Checkpoints of a model in parts: every rank writes its rows, any number of ranks reads them, half of one is none."""

import json
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.decoder import Decoder
from stages.checkpoint import checkpoints_in, partial_of, problem_of
from stages.train.optimizers import Optimizers
from stages.train.parts import (
    GRACE,
    PATIENCE,
    SLOWEST,
    Stored,
    join,
    part_name,
    parts_of,
    publish,
    save_parts,
    stored,
    write_part,
)
from stages.train.saving import Saver
from stages.train.state import Checkpoints, TrainState
from tests.stages.ranks import train_all
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, run_in

STEADY = {**TRAIN.model_dump(), "max_steps": 6, "batch_tokens": 192, "eval_interval": 2, "ema_decay": 0.9}
FULL = {"sharding": "full"}
TENSORS = {
    "b.weight": torch.arange(35.0).view(7, 5),
    "a.gain": torch.arange(2.0),
    "steps": torch.tensor(3.0),
    "c.count": torch.arange(4),
    "d.half": torch.arange(12.0).view(3, 2, 2).to(torch.bfloat16),
    "é": torch.arange(3.0, dtype=torch.float64),
}


def write_in_parts(folder: Path, world: int) -> None:
    """As `world` ranks would: ceil(rows / world) rows to each, as long as there are any, a count of steps to the
    first."""
    for rank in range(world):
        mine = {}
        for name, tensor in TENSORS.items():
            rows = -(-len(tensor) // world) if tensor.ndim else 0
            piece = tensor[rows * rank :][:rows].clone() if tensor.ndim else tensor
            if rank == 0 or (tensor.ndim and len(piece)):
                mine[name] = piece
        if mine:
            save_file(mine, folder / f"{part_name('model', rank, world)}.safetensors")


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_joined_parts_are_the_file_that_safetensors_writes(tmp_path: Path, world: int):
    write_in_parts(tmp_path, world)
    save_file(TENSORS, tmp_path / "expected")
    join(parts_of(tmp_path, "model"), tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("world", [2, 3])
def test_any_rows_are_read_from_any_parts(tmp_path: Path, world: int):
    write_in_parts(tmp_path, world)
    for name, tensor in TENSORS.items():
        found = stored(tmp_path, "model")[name]
        assert isinstance(found, Stored) and found.ndim == tensor.ndim
        assert torch.equal(found.whole(), tensor)
        for first in range(len(tensor) + 2 if tensor.ndim else 0):
            for last in range(first, len(tensor) + 2):
                rows = found[first:last]
                assert torch.equal(rows, tensor[first:last]) and rows.dtype == tensor.dtype
    assert stored(tmp_path, "optimizer") == {}


def test_what_another_rank_could_not_write_is_raised_by_the_first(tmp_path: Path):
    folder, files = tmp_path / "step-00000002", {"model": {"weight": torch.zeros(1000)}}
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        write_part(folder, files, 1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    with pytest.raises(OSError, match="File too large") as refused:
        save_parts(folder, files, {}, {}, {}, {}, 2, threading.Event())
    assert refused.value.filename.endswith("step-00000002.partial/model-00002-of-00002.safetensors")
    assert not folder.exists()


class Clock:
    """Time that passes by sleeping alone; at every sleep another rank does something."""

    def __init__(self, meanwhile: Callable[[float], None] = lambda now: None):
        self.now, self.meanwhile = 0.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now)


def closing(is_set: bool) -> threading.Event:
    event = threading.Event()
    if is_set:
        event.set()
    return event


FILES = {"model": {"weight": torch.zeros(3)}}


def test_a_rank_that_is_no_more_is_not_waited_for_when_the_training_ends(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stages.train.parts.time", Clock())
    assert not save_parts(tmp_path / "step-00000002", FILES, {}, {}, {}, {}, 2, closing(True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [False, True])
def test_a_rank_is_waited_for_as_long_as_its_part_grows(tmp_path: Path, monkeypatch, ending: bool):
    folder, slow = tmp_path / "step-00000002", 10 * PATIENCE

    def grow(now: float) -> None:
        if now < slow:
            with (partial_of(folder) / f"{part_name('model', 1, 2)}.safetensors").open("ab") as file:
                file.write(b"0")
        else:
            write_part(folder, FILES, 1, 2)

    monkeypatch.setattr("stages.train.parts.POLL", GRACE / 2)
    monkeypatch.setattr("stages.train.parts.time", clock := Clock(grow))
    assert save_parts(folder, FILES, {}, {}, {}, {}, 2, closing(ending))
    assert clock.now >= slow and problem_of(folder) is None and len(parts_of(folder, "model")) == 2


@pytest.mark.parametrize("ending", [False, True])
def test_a_large_part_that_grows_no_more_is_given_the_time_to_sync_and_to_hash_it(tmp_path: Path, monkeypatch, ending):
    folder, busy = tmp_path / "step-00000002", 2 * PATIENCE
    written = partial_of(folder) / f"{part_name('model', 1, 2)}.safetensors"
    partial_of(folder).mkdir()
    with written.open("wb") as file:
        file.truncate(int(busy * SLOWEST))  # a hole, no bytes on the disk

    def end(now: float) -> None:
        if now >= busy:
            write_part(folder, FILES, 1, 2)

    monkeypatch.setattr("stages.train.parts.POLL", 1.0)
    monkeypatch.setattr("stages.train.parts.time", Clock(end))
    assert save_parts(folder, FILES, {}, {}, {}, {}, 2, closing(ending))


def test_a_rank_that_writes_nothing_is_an_error_where_the_training_would_wait_for_ever(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stages.train.parts.POLL", 1.0)
    monkeypatch.setattr("stages.train.parts.time", clock := Clock())
    folder = tmp_path / "step-00000002"
    write_part(folder, FILES, 1, 3)
    with pytest.raises(OSError, match="rank 2 of ranks 0 to 2 has written nothing into .* for 120 s") as refused:
        save_parts(folder, FILES, {}, {}, {}, {}, 3, closing(False))
    assert str(partial_of(folder)) in str(refused.value) and "the same command goes on" in str(refused.value)
    assert PATIENCE < clock.now < 2 * PATIENCE and not folder.exists()


def test_a_checkpoint_that_did_not_come_to_be_removes_none(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stages.train.parts.time", Clock())
    model = Decoder(MODEL, 61, 16)
    optimizers = Optimizers(model, TRAIN)
    checkpoints = Checkpoints(tmp_path, {"run": "", "lineage": []}, {}, keep=1)
    for step, best, world in ((50, 50, 1), (100, 50, 1), (150, 150, 2)):
        saver = Saver()
        if world > 1:
            saver.closing.set()
        state = TrainState(step=step, best_step=best)
        checkpoints.save(saver, state, model, optimizers, {}, {}, rank=0, world=world)
        saver.close()
    assert checkpoints.steps() == [50, 100]
    assert not list(tmp_path.glob("*.partial"))


def scenario(folder: str, world: int, **more) -> dict:
    return {"folder": folder, "world": world, "train": STEADY, "execution": more.pop("execution", FULL), **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Muon with averaged weights on 2 ranks; the same stopped, saved again by 1 and by 3 ranks; killed in a save."""
    found = [scenario("straight", 2, interval=2), scenario("moved", 2, stop=3)]
    found += [scenario("moved", 1, again="by-1", execution={}), scenario("moved", 3, again="by-3")]
    for rank in (0, 1):
        found.append(scenario(f"killed-{rank}", 2, interval=2, kill=[rank, 4]))
        found.append(scenario(f"killed-{rank}", 2, again=f"after-{rank}"))
        found.append(scenario(f"killed-{rank}", 2, interval=2))
    return train_all(tmp_path_factory.mktemp("parts"), found, validation_documents=60)


def published(folder: Path, step: int, into: Path) -> dict[str, bytes]:
    """The tensors of a checkpoint as train publishes them, by file."""
    publish(checkpoints_in(folder)[step], into)
    assert problem_of(into) is None
    return {path.name: path.read_bytes() for path in into.glob("*.safetensors")}


def test_every_rank_writes_its_part(trained: Path):
    folder = checkpoints_in(trained / "straight")[6]
    names = {f"{name}-0000{rank}-of-00002.safetensors" for name in ("model", "optimizer", "raw") for rank in (1, 2)}
    assert {path.name for path in folder.glob("*.safetensors")} == names
    sizes = [(folder / f"{part_name('optimizer', rank, 2)}.safetensors").stat().st_size for rank in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes)
    assert problem_of(folder) is None
    damaged = folder / f"{part_name('raw', 1, 2)}.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert str(damaged) in str(problem_of(folder))
    assert [problem_of(folder, rank, 2) for rank in (0, 1)].count(None) == 1
    damaged.write_bytes(content)


def test_parts_are_bit_for_bit_what_other_numbers_of_ranks_load(trained: Path, tmp_path: Path):
    expected = published(trained / "moved", 4, tmp_path / "by-2")
    assert expected.keys() == {"model.safetensors", "optimizer.safetensors", "raw.safetensors"}
    for world in (1, 3):
        assert published(trained / f"by-{world}", 4, tmp_path / f"by-{world}") == expected
    assert len(parts_of(checkpoints_in(trained / "by-3")[4], "model")) == 3
    assert load_file(checkpoints_in(trained / "by-1")[4] / "model.safetensors").keys()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(trained: Path, tmp_path: Path, rank: int):
    assert list(checkpoints_in(trained / f"after-{rank}")) == [2], "what was gone on from"
    expected = published(trained / "straight", 6, tmp_path / "straight")
    assert published(trained / f"killed-{rank}", 6, tmp_path / "killed") == expected
    assert not list((trained / f"killed-{rank}").glob("*.partial"))


def test_what_is_published_is_whole(packed: Path):
    train = TRAIN.model_copy(update={"max_steps": 6, "eval_interval": 2})
    execution = EXECUTION.model_copy(update={"n_processes": 2, **FULL})
    out = run_in(packed, train, execution)
    for name in ("best", "last"):
        assert {"model.safetensors", "optimizer.safetensors"} == {p.name for p in (out / name).glob("*.safetensors")}
        assert set(json.loads((out / name / "manifest.json").read_text())) == {
            path.name for path in (out / name).iterdir() if path.name != "manifest.json"
        }
        assert problem_of(out / name) is None
