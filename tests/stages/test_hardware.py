"""The machine of a training: what it is, what is installed, and how busy it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages import hardware


def test_the_environment_is_every_package_and_the_machine() -> None:
    files = hardware.environment({"device": "cpu", "tracking_uri": "http://name:word@host"})
    lines = files["requirements.txt"].splitlines()
    assert any(line.startswith("torch==") for line in lines) and all("==" in line for line in lines)
    described = json.loads(files["environment.json"])
    assert described["execution"] == {"device": "cpu"}
    assert described["memory_bytes"] > 1e9 and "cores" in described["cpu"]


def test_gpus_and_their_driver_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
        information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 100\n"
        (tmp_path / "gpus" / f"0000:0{number}:00.0" / "information").write_text(information)
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:  gcc 12.3.0\n"
    )
    monkeypatch.setattr(hardware, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "version")
    tags = hardware.tags()
    assert (tags["gpu"], tags["gpu_driver"]) == ("2 x NVIDIA H200", "570.86.15")
    monkeypatch.setattr(hardware, "GPUS", tmp_path / "none")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "none")
    assert hardware.tags().keys() == {"cpu"}


def test_figures_have_the_names_of_mlflow_and_come_less_often_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(hardware, "time", SimpleNamespace(monotonic=lambda: now))
    monitor = hardware.Monitor(tmp_path)
    assert not monitor.due(closing=False) and monitor.due(closing=True)
    times = []
    while now < 1000 + 24 * 3600:
        if monitor.due(closing=False):
            times.append(now - 1000)
            figures = monitor.sample()
        now += 2
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= figures.keys()
    assert times[:3] == [10, 20, 30] and 1000 < len(times) < 1700


def test_each_gpu_has_its_figures_where_the_library_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def power(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError  # does not tell
        return 688_200

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=70e9, total=140e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    figures = hardware.Monitor(tmp_path).sample()
    assert figures["system/gpu_0_power_usage_watts"] == 688.2
    assert figures["system/gpu_1_utilization_percentage"] == 97
    assert figures["system/gpu_1_memory_usage_percentage"] == 50
    assert "system/gpu_1_power_usage_watts" not in figures
