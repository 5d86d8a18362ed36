"""pipeline.scheduling.gpu_slot: who takes a slot of the limit `gpu`, and what is said while waiting for one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.scheduling import gpu_slot
from pipeline.scheduling.gpu_slot import on_gpu


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cpu", "0", False), ("cuda", "", True), ("auto", "", False), ("auto", "0", True)],
)
def test_the_device_is_that_of_params_or_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, visible: str, expected: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "params.yaml").write_text(f"execution: {{device: {device}}}")
    assert on_gpu(tmp_path) == expected
    monkeypatch.setenv("MILLRACE_EXECUTION__DEVICE", "cpu")
    assert not on_gpu(tmp_path)


@pytest.mark.slow
def test_one_waits_for_the_other_and_says_so(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import get_client

    monkeypatch.setattr(gpu_slot, "SAY_SECONDS", 0.3)
    monkeypatch.setattr(gpu_slot, "ASK_SECONDS", 0.1)
    said: list[str] = []
    shown: list[str] = []

    def show(line: str) -> bool:
        shown.append(line)
        return len(shown) > 1  # the server does not know the task at first

    def slot(seconds: float) -> object:
        deadline = time.monotonic() + seconds
        return gpu_slot.gpu_slot(said.append, show, stopping=lambda: time.monotonic() > deadline)

    with get_client(sync_client=True) as client:
        with slot(5):  # there is no limit: nothing is held
            pass
        assert said == []
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
        with slot(5):
            assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 1
            with slot(1):  # gives up when it is told to stop
                pass
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0
    assert len(said) >= 2 and said[0] == "waits for a slot of `gpu` since 0 s (1 of 1 taken)"
    assert shown[:2] == [said[0]] * 2  # again, until it was shown
