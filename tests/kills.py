"""Kills runs of `experiment=digits` and lets them go on: a program of its own for test_kills.py.

It imports everything once and forks a process for every run, because importing takes longer than
such a run. What it prints says which moments were chosen; it ends with 1 at the first difference.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from nayer_pl.run import train

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds for a run

# The real data, encoder, networks and files, only less of everything: 13 rounds and 36 steps, two
# births of the generator, five epochs. As a user types it.
SHORT = [
    "experiment=digits", "plan.epochs=3", "plan.warmup_epochs=2", "plan.warmup_rounds=3",
    "plan.rounds_per_epoch=2", "plan.kd_steps=12", "plan.round_size=20", "plan.batch_size=16",
    "model.generator_steps=3", "model.noisy_features=32", "model.generator_life=2",
    "model.check_teacher=false", "teacher.weights=teacher.safetensors", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=5", "logger=csv", "callbacks.samples=null", "callbacks.curves=null",
    "callbacks.progress=null", "+trainer.enable_progress_bar=false",
]  # fmt: skip


def start(run_dir: str, *more: str) -> int:
    """Begin or go on with a run in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(f"{run_dir}.txt", "a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        overrides = [*SHORT, f"run_dir={run_dir}", "resume=auto", *more]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            train(compose("train", overrides=overrides))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(process: int, seconds: float) -> int | None:
    """Wait for its end, at most so long: the exit status, or None after SIGKILL."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def difference(run: str, whole: str) -> str | None:
    """What the run that went on did otherwise than the one that nobody killed."""
    ours, theirs = (
        load_file(f"{run}/student.safetensors"),
        load_file(f"{whole}/student.safetensors"),
    )
    if ours.keys() != theirs.keys():
        return "the student's tensors"
    for name in theirs:
        if not torch.equal(ours[name], theirs[name]):
            return f"the student's {name}"
    if Path(run, "metrics.csv").read_text() != Path(whole, "metrics.csv").read_text():
        return "metrics.csv"
    return None


def main(kills: int, seed: int) -> None:
    """Run it once to the end, then kill it `kills` times at a random moment."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    began = time.monotonic()
    assert end(start("whole"), LIMIT) == 0, Path("whole.txt").read_text()
    whole = time.monotonic() - began
    print(f"seed {seed}; the whole run takes {whole:.1f} s", flush=True)
    for i in range(kills):
        run, moment = f"run{i}", chance.uniform(0, whole)
        # Zero writes a checkpoint after every round and every step: many kills hit one.
        minutes = f"checkpoint.minutes={chance.choice([0, 0.01, 10])}"
        killed = end(start(run, minutes), moment) is None
        kept = [path.name for path in sorted(Path(run, "checkpoints").glob("*"))]
        status = end(start(run, minutes), LIMIT)
        text = Path(f"{run}.txt").read_text()
        found = difference(run, "whole") if status == 0 else f"exit status {status}\n{text}"
        print(
            f"{i}: {'killed' if killed else 'over'} after {moment:.2f} s, {minutes}, left {kept}: "
            f"{found or 'equal'}", flush=True,
        )  # fmt: skip
        if found:
            sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
