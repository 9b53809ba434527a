"""One process against two (gloo), one thread each: synthesis, distillation, and what talking costs.

python benchmarks/scaling.py [--pair wrn16_1-wrn16_1] [--json FILE]

A real Trainer follows the same plan of 32x32 images in every run, with untrained networks. The
plan's sizes are totals: of two processes each makes every other round and half of every batch.
One process with two threads is the other use of two cores. The runs take turns, each in processes
of its own; a figure is the median of its runs, and that of a run the median of its work items on
the first process, fetched and done. A round ends for a process when it ends for both.

The communication share is what a distillation step with averaged gradients takes longer than one
without (DDP's `no_sync`); they interleaved in the same run. In it are the all-reduce as far as the
backward pass does not hide it, waiting for a process that is late in this step, and DDP's copies
to and from its buckets. A barrier before every item, not on the clock, keeps what an earlier one
left behind out of it. Lightning's broadcast of one number before every item is in both kinds of
step, and so not in the share.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from measuring import machine
from torch.nn.parallel import DistributedDataParallel

from nayer_pl import NAYER, Classifier, Plan, RandomCropFlip, SyntheticDataModule, networks
from nayer_pl.app.output import quiet_lightning
from nayer_pl.bank import SynthesisRound

IMAGE_SHAPE, CLASSES, TEXT, GENERATOR_STEPS = (3, 32, 32), 10, 512, 2
PLAN = Plan(
    epochs=1, warmup_epochs=0, rounds_per_epoch=6, kd_steps=14, round_size=40, batch_size=128
)
WAYS = [(1, 1), (2, 1), (1, 2)]  # processes, threads of each


def main() -> None:
    """Measure, print a table, write JSON; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", default="wrn16_1-wrn16_1", help="teacher-student")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, help="measure one run only, with this many")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the figures are a CPU's
    if arguments.processes:
        measure(arguments.pair, arguments.processes)
        return
    runs: dict[tuple[int, int], list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repetitions):
        for way in WAYS:
            runs[way].append(run_apart(arguments.pair, *way))
    figures: dict[str, Any] = {"machine": machine(), "pair": arguments.pair}
    for (processes, threads), found in runs.items():
        for name in found[0]:
            values, key = [run[name] for run in found], f"{name}_{processes}x{threads}"
            figures[key] = statistics.median(values)
            figures[f"{key}_lowest"], figures[f"{key}_highest"] = min(values), max(values)
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def run_apart(pair: str, processes: int, threads: int) -> dict[str, float]:
    """One run, in processes that know how many threads they have before they import torch."""
    command = [sys.executable, __file__, f"--pair={pair}", f"--processes={processes}"]
    print(f"$ OMP_NUM_THREADS={threads} python", *command[1:], flush=True)
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(pair: str, processes: int) -> None:
    """Train, and let the first process print what it measured as JSON."""
    quiet_lightning()
    seed_everything(0, verbose=False)
    teacher, student = (
        Classifier(getattr(networks, name)(num_classes=CLASSES), [0.5], [0.25])
        for name in pair.split("-")
    )
    method = NAYER(
        teacher, student, IMAGE_SHAPE, torch.randn(CLASSES, TEXT), generator_steps=GENERATOR_STEPS,
        augmentation=RandomCropFlip(), round_size=PLAN.round_size, check_teacher=False,
    )  # fmt: skip
    ddp = DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True)
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=ddp if processes > 1 else "auto",
        max_epochs=PLAN.max_epochs, callbacks=[clock], logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = SyntheticDataModule(
        IMAGE_SHAPE, CLASSES, PLAN, evaluation=False, augmentation=RandomCropFlip()
    )
    trainer.fit(method, datamodule=data)
    if trainer.is_global_zero:
        print(json.dumps(clock.figures()))


class Clock(Callback):
    """Seconds of every work item, and of fetching it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def on_train_epoch_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Start to wait for the first item."""
        self.ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, method: LightningModule, item: Any, i: int
    ) -> None:
        """Choose whether gradients are averaged; wait for the other process, off the clock."""
        fetching = time.perf_counter() - self.ended
        self.kind = "round" if isinstance(item, SynthesisRound) else "step"
        self.apart = contextlib.ExitStack()
        if self.kind == "step" and i % 2 and isinstance(trainer.model, DistributedDataParallel):
            self.kind = "step apart"
            self.apart.enter_context(trainer.model.no_sync())
        trainer.strategy.barrier()
        self.started = time.perf_counter() - fetching

    def on_train_batch_end(
        self, trainer: Trainer, method: LightningModule, outputs: Any, item: Any, i: int
    ) -> None:
        """Note how long it took."""
        self.ended = time.perf_counter()
        self.seconds[self.kind].append(self.ended - self.started)
        self.apart.close()

    def figures(self) -> dict[str, float]:
        """Medians; the first of a kind is for warming up."""
        median = {kind: statistics.median(found[1:]) for kind, found in self.seconds.items()}
        figures = {
            "images_per_second": PLAN.round_size / median["round"],
            "steps_per_second": 1 / median["step"],
        }
        if "step apart" in median:
            figures["communication_share"] = 1 - median["step apart"] / median["step"]
        return figures


def print_table(figures: dict[str, Any]) -> None:
    """As Markdown."""
    print(
        f"\n{figures['machine']}\n{figures['pair']}, rounds of {PLAN.round_size} images and "
        f"{GENERATOR_STEPS} generator steps, distillation batches of {PLAN.batch_size} in all; "
        "medians of the runs\n"
    )
    print(
        "| processes x threads | synthesis of a process, images/s | of all | distillation, steps/s "
        "| communication, % of a step |\n|---|---|---|---|---|"
    )
    for processes, threads in WAYS:
        way = f"{processes}x{threads}"
        images, steps = figures[f"images_per_second_{way}"], figures[f"steps_per_second_{way}"]
        talking = "none"
        if processes > 1:
            of_runs = [f"communication_share_{way}{which}" for which in ("", "_lowest", "_highest")]
            share, lowest, highest = (100 * figures[name] for name in of_runs)
            talking = f"{share:.1f} (runs: {lowest:.1f} to {highest:.1f})"
        print(
            f"| {processes} x {threads} | {images:.1f} | {processes * images:.1f} "
            f"| {steps:.2f} | {talking} |"
        )


if __name__ == "__main__":
    main()
