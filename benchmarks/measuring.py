"""What the scripts share: jobs of train.py one after another, clocks, names of machines."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nayer_pl.app.output import environment_info

ROOT = Path(__file__).resolve().parents[1]


def run_job(run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of train.py in a process of its own: its summary and its wall-clock seconds."""
    finished = run_dir / "summary.json"
    if not finished.exists():
        command = [sys.executable, "train.py", f"run_dir={run_dir}", "logger=csv", *overrides]
        print("$", " ".join(["python", *command[1:]]), flush=True)
        shutil.rmtree(run_dir, ignore_errors=True)  # of an attempt that was interrupted
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        (run_dir / "wall_seconds").write_text(str(time.perf_counter() - started))
    summary = json.loads(finished.read_text())
    return {**summary, "seconds_wall": float((run_dir / "wall_seconds").read_text())}


def mean_and_spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and sample standard deviation over seeds."""
    scaled = [value * scale for value in values]
    spread = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    return f"{statistics.fmean(scaled):.{digits}f} ± {spread:.{digits}f}"


def machine() -> str:
    """What the figures were measured on."""
    return ", ".join(environment_info("cuda" if torch.cuda.is_available() else "cpu").values())


def synchronize() -> None:
    """Wait for the device, if there is one to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Operations per second that this machine reaches in large matrix products of `dtype`."""
    size = 8192 if torch.device(device).type == "cuda" else 1536
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[1:])
