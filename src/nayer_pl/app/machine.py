"""What a run was measured on: seconds mean little without it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("nayer_pl", "torch", "lightning")


def environment_info(device: torch.device | str = "cpu", devices: int = 1) -> dict[str, str]:
    """Machine and versions in words, for a run's summary.

    Args:
        device: of the run, on this rank.
        devices: how many of them, over all ranks.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    several = f"{devices} x " if devices > 1 else ""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    power = f"{cores} core{'s'[: cores > 1]}, {threads} thread{'s'[: threads > 1]}"
    versions = [f"{package} {version(package)}" for package in PACKAGES]
    return {
        "machine": f"{several}{name}, {power}",
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
