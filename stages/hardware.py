"""The machine of a training for its MLflow run: what it is, what is installed, and how busy it is.

    tags()          {"cpu": "AMD EPYC 9654 (192 cores)", "gpu": "8 x NVIDIA H200", "gpu_driver": "570.86.15"}
    environment()   the files environment/requirements.txt and environment/environment.json of the run
    Monitor()       {"system/cpu_utilization_percentage": 93.1, "system/gpu_0_power_usage_watts": 688.2, ..}

The figures have the names that MLflow's own monitor gives them, so its page "System metrics" draws them. That
monitor has a thread and a connection of its own, which would wait for a slow server at the end of a training;
here the thread of tracking.py asks every ten seconds, and less and less often later (1,500 times on the first day).

GPUs are read through `nvidia-ml-py` (of the extra `gpu`); without it the run has no GPU figures, and the
driver and the names come from /proc. Nothing here starts a process.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

FIRST_INTERVAL = 10.0  # seconds between figures, as MLflow's own monitor
GROWTH = 1 / 360  # later: this part of the time that has passed, so every 100 s after ten hours
DRIVER, GPUS, CPU = Path("/proc/driver/nvidia/version"), Path("/proc/driver/nvidia/gpus"), Path("/proc/cpuinfo")


def tags() -> dict[str, str]:
    """CPU, GPUs and their driver in words; milliseconds."""
    names = Counter(gpu_names())
    found = {
        "cpu": f"{_cpu_name()} ({os.cpu_count()} cores)",
        "gpu": ", ".join(f"{count} x {name}" for name, count in names.items()),
        "gpu_driver": _first_group(r"\s(\d+\.[\d.]+)\s", DRIVER),
    }
    return {name: text for name, text in found.items() if text}


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine, in the order of their addresses."""
    return [_first_group(r"Model:\s*(.+)", path) for path in sorted(GPUS.glob("*/information"))]


def environment(execution: dict[str, Any]) -> dict[str, str]:
    """Files by name: every installed package as pip takes it, and the machine with the section `execution`."""
    import psutil

    packages = {(dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions()}
    described = {
        **tags(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "memory_bytes": psutil.virtual_memory().total,
        "execution": {name: value for name, value in execution.items() if name != "tracking_uri"},  # may hold a word
    }
    return {
        "requirements.txt": "".join(f"{name}=={version}\n" for name, version in sorted(packages) if name),
        "environment.json": json.dumps(described, indent=2) + "\n",
    }


class Monitor:
    """Asks the machine how busy it is, as often as is due."""

    def __init__(self, disk: Path):
        import psutil

        self._disk, self._begin, self._last = disk, time.monotonic(), 0.0
        psutil.cpu_percent()  # the first answer is always 0: it is the use since the last question
        self._network = psutil.net_io_counters()
        self._nvml, self._gpus = _open_gpus()

    def due(self, closing: bool) -> bool:
        """Also at the end of a training that was too short for any."""
        now = time.monotonic()
        if not self._last:
            return closing or now - self._begin >= FIRST_INTERVAL
        return now - self._last >= max(FIRST_INTERVAL, (now - self._begin) * GROWTH)

    def sample(self) -> dict[str, float]:
        import psutil

        self._last = time.monotonic()
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(self._disk)), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
        }
        for number, gpu in enumerate(self._gpus):
            found.update({f"gpu_{number}_{name}": value for name, value in _gpu_figures(self._nvml, gpu).items()})
        return {f"system/{name}": round(value, 1) for name, value in found.items()}


def _open_gpus() -> tuple[Any, list[Any]]:
    """The library and a handle per GPU; none where there is no GPU or no library."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, or a driver that refuses: there are no figures then
        return None, []


def _gpu_figures(nvml: ModuleType, gpu: Any) -> dict[str, float]:
    """What this GPU tells; some do not tell their power."""
    found: dict[str, float] = {}
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        found["memory_usage_percentage"] = memory.used / memory.total * 100
        found["memory_usage_megabytes"] = memory.used / 1e6
        found["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        found["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
    except nvml.NVMLError:
        pass
    return found


def _cpu_name() -> str:
    return _first_group(r"model name\s*:\s*(.+)", CPU) or platform.processor() or platform.machine()


def _first_group(pattern: str, path: Path) -> str:
    """What the pattern finds in a file of the system, or nothing."""
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1].strip() if found else ""
