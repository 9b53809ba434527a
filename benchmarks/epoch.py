"""A whole distillation epoch of ours against the published pipeline's, files and workers included.

python benchmarks/epoch.py [--pair wrn40_2-wrn16_2] [--compile] [--full] [--json FILE]

CIFAR-10's recipe, shortened alike for both: the images of rounds and of distillation stay in its
proportion of 1 to 8.5. `--full` is the recipe itself, for a GPU. Epochs take turns, ours first; the
first of each is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from measuring import machine, synchronize
from published import PngBank
from side_by_side import SideBySide, seconds

from nayer_pl import Plan
from nayer_pl.bank.plan import round_targets


class EachEpoch(Callback):
    """Times every epoch of ours, then the published one; `seconds` holds pairs."""

    def __init__(self, both: SideBySide, bank: PngBank) -> None:
        self.both, self.bank = both, bank
        self.seconds: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        synchronize()
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it, and let the other one work."""
        synchronize()
        ours = time.perf_counter() - self.started
        theirs = seconds(self._published)
        if trainer.current_epoch:
            self.seconds.append((ours, theirs))

    def _published(self) -> None:
        both, plan = self.both, self.both.plan
        for _ in range(plan.rounds_per_epoch):
            targets = round_targets(both.datamodule.num_classes, plan.round_size)
            images = both.published.round(targets.to(both.device), both.generator_steps)
            self.bank.add(images)
        for images in self.bank.batches(plan.kd_steps):
            both.published.distil(images.to(both.device, non_blocking=True))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="wrn40_2-wrn16_2", help="teacher-student")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--full", action="store_true", help="the recipe itself")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = {"round_size": 60, "batch_size": 128, "kd_steps": 16}
    if arguments.full:
        sizes = {"round_size": 400, "batch_size": 512, "kd_steps": 400}
    plan = Plan(epochs=arguments.repetitions + 1, warmup_epochs=0, rounds_per_epoch=2, **sizes)
    steps = 30 if arguments.full else 2
    both = SideBySide(arguments.pair, plan, steps, arguments.compile, arguments.precision)
    with tempfile.TemporaryDirectory() as folder:
        measured = EachEpoch(both, PngBank(Path(folder), plan.batch_size))
        both.run(measured)
    ours, theirs = (statistics.median(column) for column in zip(*measured.seconds, strict=True))
    figures = {
        "pair": arguments.pair,
        **both.facts(),
        "epoch_seconds": ours,
        "epoch_seconds_published": theirs,
        "epoch_ratio": statistics.median(b / a for a, b in measured.seconds),
    }
    print(f"\n{machine()}\n{arguments.pair}, {both.precision}, compile={arguments.compile}: {plan}")
    print("\n| published, s | ours, s | ratio |\n|---|---|---|")
    print(f"| {theirs:.1f} | {ours:.1f} | {figures['epoch_ratio']:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
