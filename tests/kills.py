"""Kills runs of `experiment=digits` and resumes them: a program of its own for test_kills.py.

It imports everything once and forks a process for every part of a run, because importing takes
longer than such a run. What it prints says which moments were chosen; it ends with 1 at the first
difference.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from running import metrics
from safetensors.torch import load_file

from nayer_pl.app.main import register_configs
from nayer_pl.app.train import train

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for a run: only one that hangs takes that long, on any machine

TEACHER = [
    "model=supervised", "data=digits", "teacher=wrn16_1", "plan.epochs=1",
    "teacher.weights=teacher.safetensors", "run_dir=teacher",
]  # fmt: skip

# The real data, encoder, networks and files, only less of everything: 13 rounds and 36 steps, two
# births of the generator, five epochs. As a user types it.
SHORT = [
    "experiment=digits", "plan.epochs=3", "plan.warmup_epochs=2", "plan.warmup_rounds=3",
    "plan.rounds_per_epoch=2", "plan.kd_steps=12", "plan.round_size=20", "plan.batch_size=16",
    "model.generator_steps=3", "model.noisy_features=32", "model.generator_life=2",
    "model.check_teacher=false", "teacher.weights=teacher.safetensors",
    "trainer.log_every_n_steps=5", "callbacks.samples=null", "callbacks.curves=null",
]  # fmt: skip
QUIET = [
    "trainer.accelerator=cpu", "logger=csv", "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip


def start(*overrides: str) -> int:
    """Begin or resume a run in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open("said.txt", "a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        register_configs(ROOT / "conf")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            train(compose("train", overrides=[*overrides, *QUIET]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(
    process: int,
    seconds: float = LIMIT,
    how: signal.Signals = signal.SIGKILL,
    look: Callable[[int], None] = lambda process: None,
) -> int | None:
    """Wait for its end: the exit status, or None if it had to be ended.

    Args:
        process: which.
        seconds: at most.
        how: SIGKILL or SIGTERM.
        look: called in the meantime.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        look(process)
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, how)
    return 0 if os.waitpid(process, 0)[1] == 0 else None


def whole(*overrides: str) -> float:
    """A teacher, and an uninterrupted run of it in `whole`; how long that run took.

    Like every other it saves after each round and each step, which takes the longest.
    """
    assert end(start(*TEACHER)) == 0, Path("said.txt").read_text()
    began = time.monotonic()
    process = start(*overrides, "run_dir=whole", "checkpoint.minutes=0")
    assert end(process) == 0, Path("said.txt").read_text()
    return time.monotonic() - began


def difference(run: str) -> str | None:
    """What differs between a resumed run and the one that was not killed."""
    ours, theirs = (load_file(f"{name}/student.safetensors") for name in (run, "whole"))
    if ours.keys() != theirs.keys():
        return "the student's tensors"
    for name in theirs:
        if not torch.equal(ours[name], theirs[name]):
            return f"the student's {name}"
    return None if metrics(run) == metrics("whole") else "metrics.csv"


def main(kills: int, seed: int) -> None:
    """Run it once to the end; then until it was killed at `kills` random moments, and compare.

    A resumed run may be killed again, at any time.
    """
    torch.set_num_threads(1)
    chance, run, left = random.Random(seed), 1, kills
    seconds = whole(*SHORT)
    print(f"seed {seed}; the whole run takes {seconds:.1f} s", flush=True)
    while True:
        minutes = f"checkpoint.minutes={chance.choice([0, 0, 0.01, 10])}"
        moment = chance.uniform(0, seconds) if left else LIMIT
        status = end(start(*SHORT, f"run_dir=run{run}", "resume=auto", minutes), moment)
        if status is None and left:
            left -= 1
            kept = sorted(path.name for path in Path(f"run{run}", "checkpoints").glob("*"))
            print(f"{run}: killed after {moment:.2f} s, {minutes}, left {kept}", flush=True)
            continue
        found = difference(f"run{run}") if status == 0 else f"exit status {status}"
        print(f"{run}: {found or 'equal'}", flush=True)
        if found:
            sys.exit(Path("said.txt").read_text()[-5000:])
        if not left:
            return
        run += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
