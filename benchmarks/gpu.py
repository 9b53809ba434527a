"""Check, parity and timing on a GPU within ten minutes; every figure goes to one file.

python benchmarks/gpu.py [--out runs/benchmark_gpu] [--minutes 10]

Each part is a command that can be typed alone. A part that fails or runs out of time is reported as
that, and the others still run; what takes longest comes last. Parity is of one seed here.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, machine

PAIR = "resnet34-resnet18"
STEPS = ["--pair", PAIR, "--steps", "10", "--batch-size", "512", "--repetitions", "3"]
EPOCH = ["--pair", PAIR, "--full", "--repetitions", "1"]


def main() -> None:
    """Run the parts one after another, and write OUT/gpu.json after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_gpu"))
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    out, end = arguments.out.resolve(), time.monotonic() + 60 * arguments.minutes
    if not torch.cuda.is_available():
        sys.exit("This needs a CUDA GPU; steps.py and epoch.py run anywhere.")
    out.mkdir(parents=True, exist_ok=True)
    parity = ["benchmarks/parity.py", "--seeds", "0", "--ways", "plain", "bfloat16"]
    parts = {
        "check": ["-m", "pytest", "-q", "tests/test_synchronization.py"],
        "steps": ["benchmarks/steps.py", *STEPS, "--json", str(out / "steps.json")],
        "steps_float32": [
            "benchmarks/steps.py", *STEPS, "--precision", "32-true",
            "--json", str(out / "steps_float32.json"),
        ],
        "epoch": ["benchmarks/epoch.py", *EPOCH, "--json", str(out / "epoch.json")],
        "parity": [*parity, "--out", str(out / f"parity_{time.time():.0f}")],
        "steps_compiled": [
            "benchmarks/steps.py", *STEPS, "--compile",
            "--json", str(out / "steps_compiled.json"),
        ],
    }  # fmt: skip
    figures: dict[str, Any] = {"machine": machine()}
    for name, command in parts.items():
        started = time.monotonic()
        figures[name] = run(command, end - started)
        figures[name]["seconds"] = time.monotonic() - started
        print(f"{name}: {figures[name]['status']}, {figures[name]['seconds']:.0f} s", flush=True)
        (out / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """The end of what a command printed, how it ended, and the figures that it wrote."""
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=max(1.0, seconds),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"status": "out of time"}
    found: dict[str, Any] = {
        "status": "done" if not done.returncode else f"failed, exit status {done.returncode}",
        "printed": done.stdout.strip().splitlines()[-12:],
    }
    if "--json" in command and not done.returncode:
        found["figures"] = json.loads(Path(command[-1]).read_text())
    return found


if __name__ == "__main__":
    main()
