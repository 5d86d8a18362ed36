"""A small export, opened as a user's would be, and a server over it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.config import ModelConfig
from serving.engine import Engine
from serving.reader import Reader
from serving.worker import Worker
from stages.exported import Exported, open_export
from tests.serving import own_parts
from tests.serving.servers import Serving
from tests.stages.exports import write_checkpoint, write_tokenizer

CONTEXT = 128
SMALL = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one's own are found where `model.layer_pattern: model.mine.Gated` looks for them."""
    monkeypatch.setitem(sys.modules, "model.mine", own_parts)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage `export` writes of a small checkpoint."""
    from stages.export.folder import write_folder

    data = tmp_path_factory.mktemp("serving") / "data"
    tokenizer = data / "tokenizer" / "tokenizer.json"
    write_tokenizer(tokenizer, chat=True)
    write_checkpoint(data, SMALL, 300)
    (data / "export" / "hf").mkdir(parents=True)
    write_folder(data / "export" / "hf", data / "train" / "best", SMALL, 300, CONTEXT, tokenizer)
    return data / "export"


@pytest.fixture(scope="session")
def exported(folder: Path) -> Exported:
    return open_export(folder)


@pytest.fixture
def engine(exported: Exported) -> Engine:
    return Engine(Reader(exported.model, 3, CONTEXT), exported.tokenizer, chunk=16)


@pytest.fixture(scope="module")
def server(exported: Exported) -> Iterator[Serving]:
    worker = Worker(Engine(Reader(exported.model, 4, CONTEXT), exported.tokenizer, chunk=16), max_waiting=12)
    with Serving(exported, worker) as running:
        yield running
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]
