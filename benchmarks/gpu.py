"""Check, parity and timing on a GPU; every figure goes to one file. (Planned for ten minutes.)

python benchmarks/gpu.py [--out runs/benchmark_gpu]

Each part is a command that can be typed alone; a part that fails is reported and the rest goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, machine, run_job

PAIR = "resnet34-resnet18"
STEPS = ["--pair", PAIR, "--steps", "10", "--batch-size", "512", "--repetitions", "3"]


def main() -> None:
    """Run the parts one after another, and write OUT/gpu.json after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_gpu"))
    out = parser.parse_args().out.resolve()
    if not torch.cuda.is_available():
        sys.exit("This needs a CUDA GPU; steps.py and epoch.py run anywhere.")
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"machine": machine()}
    tests = [ROOT / "tests" / name for name in ("test_synchronisation.py", "networks", "synthesis")]
    parts = {
        "check": lambda: check(tests),
        "steps": lambda: script("steps.py", out, *STEPS),
        "steps_compiled": lambda: script("steps.py", out, *STEPS, "--compile"),
        "epoch": lambda: script("epoch.py", out, "--pair", PAIR, "--full", "--repetitions", "1"),
        "digits_float32": lambda: digits(out, "32-true"),
        "digits_bfloat16": lambda: digits(out, "bf16-mixed"),
    }
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            figures[name] = part()
        except subprocess.CalledProcessError as error:
            figures[name] = {"failed": f"exit status {error.returncode}"}
        print(f"{name}: {time.perf_counter() - started:.0f} s, {figures[name]}", flush=True)
        (out / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")


def check(tests: Sequence[Path]) -> dict[str, str]:
    """The tests of what runs on the device."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *map(str, tests)], cwd=ROOT, text=True,
        capture_output=True,
    )  # fmt: skip
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def script(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """The figures of another script."""
    file = out / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments, "--json", str(file)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(file.read_text())


def digits(out: Path, precision: str) -> dict[str, Any]:
    """The digits run, teacher included, in one number format."""
    teachers = f"paths.teachers={out / 'teachers'}"
    overrides = ["experiment=digits", f"trainer.precision={precision}", teachers]
    return run_job(out / f"digits_{precision}", overrides)


if __name__ == "__main__":
    main()
