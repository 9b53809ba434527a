"""Runs that are ended at random moments and resumed, for hours: bits, memory, files and handles.

python benchmarks/soak.py --minutes 120 [--epochs 30] [--seed 0] [--out runs/soak]

A round is one run of the digits (smaller than `experiment=digits`, on one CPU thread) in its own
directory. It is ended by SIGKILL, and every fourth time by SIGTERM, at random moments, is resumed
with resume=auto, and is compared with a run that nobody ended. The table is printed as it grows;
`soak.json` in --out has all samples. Linux only: it reads /proc.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, machine

sys.path.insert(0, str(ROOT / "tests"))

from kills import SHORT, difference, end, start, whole

EVERY = 0.5  # seconds between two looks at a process


class Watch:
    """Looks at one process after the other: resident megabytes and open handles over time."""

    def __init__(self) -> None:
        self.lives: list[list[tuple[float, float, int]]] = []  # seconds, megabytes, handles

    def begin(self) -> None:
        """A process is born."""
        self.born, self.lives = time.monotonic(), [*self.lives, []]

    def __call__(self, process: int) -> None:
        """Look, if it is time to."""
        age, life = time.monotonic() - self.born, self.lives[-1]
        if not life or age - life[-1][0] >= EVERY:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            life.append((round(age, 2), megabytes, len(os.listdir(f"/proc/{process}/fd"))))

    def growth(self) -> float | None:
        """Megabytes a minute in the second half of the longest life, by least squares."""
        life = max(self.lives, key=len)
        life = life[len(life) // 2 :]
        if len(life) < 5:
            return None
        seconds, megabytes, _ = zip(*life, strict=True)
        return 60 * statistics.linear_regression(seconds, megabytes).slope


def one_round(
    name: str, overrides: list[str], mean: float, chance: random.Random
) -> dict[str, Any]:
    """End a run and resume it until it is over.

    Args:
        name: of its directory.
        overrides: what is run.
        mean: seconds from a beginning to its end by force.
        chance: the moments.
    """
    watch, began, ended = Watch(), time.monotonic(), {"SIGKILL": 0, "SIGTERM": 0}
    status = None
    while status is None:
        minutes = chance.choice([0, 0.02, 10])
        command = [*overrides, f"run_dir={name}", "resume=auto", f"checkpoint.minutes={minutes}"]
        how = chance.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
        watch.begin()
        status = end(start(*command), chance.expovariate(1 / mean), how, watch)
        ended[how.name] += status is None
    return {
        **ended,
        "difference": difference(name) if status == 0 else f"exit status {status}",
        "seconds": time.monotonic() - began,
        "megabytes": max(look[1] for life in watch.lives for look in life),
        "megabytes_a_minute": watch.growth(),
        "handles": max(look[2] for life in watch.lives for look in life),
        "disk": sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 1e6,
        "files": sum(path.is_file() for path in Path(name).rglob("*")),
        "lives": watch.lives,
    }


COLUMNS = {
    "SIGKILL": "SIGKILL", "SIGTERM": "SIGTERM", "seconds": "seconds", "megabytes": "memory, MB",
    "megabytes_a_minute": "growth, MB/min", "handles": "handles", "disk": "disk, MB",
    "files": "files", "temporary": "temporary files", "shared": "shared memory",
    "difference": "bits",
}  # fmt: skip


def row(number: int, found: dict[str, Any]) -> str:
    """A line of the table."""
    cells = {**found, "difference": found["difference"] or "equal"}
    values = (cells[key] for key in COLUMNS)
    texts = (f"{v:.1f}" if isinstance(v, float) else "" if v is None else str(v) for v in values)
    return f"| {number} | {' | '.join(texts)} |"


def soak(minutes: float, overrides: list[str], seed: int) -> list[dict[str, Any]]:
    """Round after round until the time is over, or one is not equal; the first is never ended."""
    temporary, shared = Path(os.environ["TMPDIR"]), Path("/dev/shm")
    deadline, chance, before = time.monotonic() + 60 * minutes, random.Random(seed), set()
    seconds = whole(*overrides)
    before = set(shared.iterdir())
    print(f"the whole run takes {seconds:.1f} s\n\n| round | {' | '.join(COLUMNS.values())} |")
    print(f"|{'---|' * (len(COLUMNS) + 1)}", flush=True)
    rounds: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        name = f"run{len(rounds) + 1}"
        found = one_round(name, overrides, seconds / 3, chance)
        found["temporary"] = sum(1 for _ in temporary.iterdir())
        found["shared"] = len(set(shared.iterdir()) - before)
        rounds.append(found)
        seconds = min(seconds, found["seconds"])  # the whole one saved at every step, which is slow
        print(row(len(rounds), found), flush=True)
        if found["difference"]:
            break  # its directory stays
        shutil.rmtree(name)
    return rounds


def main() -> None:
    """Soak, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--epochs", type=int, default=30, help="of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if out.exists():
        sys.exit(f"'{out}' exists; choose another with --out")
    (out / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(out / "tmp"), None
    os.chdir(out)
    torch.set_num_threads(1)
    rounds = soak(arguments.minutes, [*SHORT, f"plan.epochs={arguments.epochs}"], arguments.seed)
    ended = {how: sum(found[how] for found in rounds) for how in ("SIGKILL", "SIGTERM")}
    equal = sum(found["difference"] is None for found in rounds)
    print(f"\n{machine()}\n{equal} of {len(rounds)} runs equal after {ended}")
    Path("soak.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1))
    sys.exit(equal != len(rounds))


if __name__ == "__main__":
    main()
