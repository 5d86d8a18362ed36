"""A training whose processes the user starts: torchrun or Slurm, on one node or many (execution.launcher: environment).

Every process runs `python -m stages.train` with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT set, as torchrun does. The first one works as if it were alone: it holds the locks, finds the scratch
folder, writes checkpoints and publishes. The others hear from it where that folder is, and train with it:

    rank 0    python -m stages.train -> stage.run -> lead ─── folder, run key ──┐
    rank 1..  python -m stages.train -> follow  <───────────────────────────────┘  another checkout, the same work

The folder must be the same for all, on storage that all nodes reach (execution.scratch). Params, data and code of every
node are held against those of the first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from stages.params import ParamsFile
from stages.train.origin import origin_of, run_key
from stages.train.params import TrainParams

if TYPE_CHECKING:
    from stages.train.ranks import Ranks


def follows(root: Path) -> bool:
    """Whether this process is one of those that work for the first."""
    if os.environ.get("RANK", "0") == "0":
        return False
    with contextlib.suppress(BadInput):  # which the stage tells in its own way
        return ParamsFile(root / "params.yaml").section("execution", Execution).launcher == "environment"
    return False


def lead(job: Job, folder: Path | None) -> None:
    """Tells the other processes where to train; None sends them home."""
    from stages.train.ranks import join_ranks, leave_ranks

    told = [str(folder) if folder else None, run_key(origin_of(job)), leave_word(folder) if folder else None]
    agree(join_ranks(job.execution, launched=True), told)
    if folder is None:
        leave_ranks()


def follow(job: Job, model: ModelConfig, train: TrainParams) -> None:
    """What every process but the first does as the stage.

    Raises:
        BadInput: this node has other params, data or code than the first, or cannot reach the scratch folder.
    """
    from stages.train.ranks import join_ranks, leave_ranks
    from stages.train.worker import work

    folder, key, word = agree(join_ranks(job.execution, launched=True), [None, None, None])
    if folder is None:
        leave_ranks()
        return
    if key != run_key(origin_of(job)):
        raise BadInput(
            f"params, data or code in {job.root} are not those of the first node; bring both checkouts to one commit, "
            "run `dvc repro pack` in one and `dvc pull` or copy data/ to the other"
        )
    if not finds_word(Path(folder), word):
        raise BadInput(
            f"{folder} is not there on this node, or another folder; set execution.scratch to one that all nodes reach"
        )
    work(job, model, train, Path(folder), launched=True)


def leave_word(folder: Path) -> str:
    """Leaves a word of this moment in the folder, by which other nodes know that theirs is the same one."""
    word = secrets.token_hex(8)
    (folder / "word").write_text(word, encoding="utf-8")
    return word


def finds_word(folder: Path, word: str | None) -> bool:
    try:
        return (folder / "word").read_text(encoding="utf-8") == word
    except OSError:
        return False


def agree(ranks: Ranks, told: list[str | None]) -> list[str | None]:
    """What the first rank tells, on every rank."""
    from torch import distributed

    if ranks.world > 1:
        distributed.broadcast_object_list(told, src=0)
    return told
