"""stages.unsent: several processes send what waits, and each folder may be gone at any moment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages import unsent
from stages.mlflow_store import Address, Identity
from stages.unsent import Unsent, keep, send_all, waiting


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Address]:
    base, address = tmp_path / "unsent", Address("http://127.0.0.1:9", None, tmp_path / "mlflow.lock")
    for stage in ("train", "evaluate"):
        keep(base, address, stage, Unsent(Identity("run"), 1, 2, "FINISHED", [], []))
    return base, address


def test_a_folder_that_goes_while_it_is_looked_at_is_passed_over(
    kept: tuple[Path, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, address = kept
    listed = waiting(base, address)
    assert len(listed) == 2
    read = Path.read_text

    def removed_first(path: Path, *args: object, **options: object) -> str:
        shutil.rmtree(listed[0], ignore_errors=True)  # the other process was faster
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", removed_first)
    assert waiting(base, address) == listed[1:]


def test_a_folder_that_another_process_has_sent_is_not_sent_again(
    kept: tuple[Path, Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, address = kept
    listed, sent = waiting(base, address), []

    def send(one: Unsent, address: Address) -> None:
        sent.append(one)
        shutil.rmtree(base)  # the other process ends with all of them

    monkeypatch.setattr(unsent, "_send", send)
    monkeypatch.setattr(unsent, "waiting", lambda base, address: listed)
    assert send_all(base, address) == 1 and len(sent) == 1
    assert send_all(base, address) == 0
