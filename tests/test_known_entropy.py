"""A corpus of known entropy through the real stages: the model must reach it, and cannot go below.

The text is a Markov chain on letters, each of which also ends its document with a chance of 1 in 100. So the best
possible loss is a number on paper. Below it lies whatever leaks labels into the input; above it whatever does not
learn, or loses or adds tokens on the way.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import ModelConfig
from stages.clean import stage as clean
from stages.clean.params import CleanParams
from stages.dedup import stage as dedup
from stages.dedup.params import DedupParams
from stages.download import stage as download
from stages.download.params import DownloadParams
from stages.entry import Job
from stages.execution import Execution
from stages.pack import stage as pack
from stages.pack.params import PackParams
from stages.splits import SplitParams
from stages.tokenizer import stage as tokenizer
from stages.tokenizer.params import TokenizerParams
from stages.train import stage as train
from stages.train.params import TrainParams

LETTERS, END = "abcdefgh", 0.01
DOCUMENTS = 3000


def chain() -> np.ndarray:
    """The chance of each letter, and last of the end, behind each letter."""
    follows = np.random.default_rng(0).dirichlet(np.full(len(LETTERS), 0.5), size=len(LETTERS))
    return np.hstack((follows * (1 - END), np.full((len(LETTERS), 1), END)))


def nats(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def entropy() -> float:
    """Nats a label: of the first letter, which is any, and of what follows each letter, as often as it comes."""
    p, n = chain(), len(LETTERS)
    visits = np.full(n, 1 / n) @ np.linalg.inv(np.eye(n) - p[:, :n])
    return float((np.log(n) + visits @ nats(p)) / (1 + visits.sum()))


def write_corpus(path: Path) -> None:
    generator, p = np.random.default_rng(1), chain().cumsum(axis=1)
    with path.open("w") as file:
        for _ in range(DOCUMENTS):
            letters = [int(generator.integers(len(LETTERS)))]
            while (following := int(np.searchsorted(p[letters[-1]], generator.random()))) < len(LETTERS):
                letters.append(following)
            file.write(json.dumps({"text": "".join(LETTERS[i] for i in letters)}) + "\n")


def run(root: Path, module: Any, **sections: Any) -> dict[str, Any]:
    """One stage, as its program runs it. Returns its metrics."""
    execution = Execution(device="cpu", threads=1, workers=1, tracking=False, compile=False)
    job = Job(module.__name__.split(".")[1], root, execution, (), sections)
    job.prepare()
    module.run(job, **sections)
    job.publish()
    metrics = job.out / "metrics.json"
    return json.loads(metrics.read_text()) if metrics.exists() else {}


@pytest.mark.slow
def test_the_validation_loss_is_the_entropy_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    write_corpus(tmp_path / "inputs/chain.jsonl")
    run(tmp_path, download, download=DownloadParams(source="files"))
    kept = run(tmp_path, clean, clean=CleanParams(recipe="none"), split=SplitParams(validation=0.25, test=0.01))
    assert kept["documents_out"] == DOCUMENTS
    run(tmp_path, dedup, dedup=DedupParams(enabled=False))
    run(tmp_path, tokenizer, tokenizer=TokenizerParams(type="character", vocab_size=300))
    packed = run(tmp_path, pack, pack=PackParams(context_length=64))
    assert packed["dropped_tokens"] == 0
    model = ModelConfig(n_layers=1, hidden_size=32, n_heads=2, n_kv_heads=1)
    settings = TrainParams(
        max_steps=150, batch_tokens=4096, warmup_steps=10, eval_interval=150, validation_tokens=10**6
    )  # fmt: skip
    trained = run(tmp_path, train, model=model, train=settings)
    assert trained["validation_loss"] == pytest.approx(entropy(), abs=0.01)
