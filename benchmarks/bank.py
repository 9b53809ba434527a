"""The memory bank against a folder of PNG files: batches, rounds, and what growing costs.

python benchmarks/bank.py [--json FILE]

Everything is measured in turn, again and again, in this one process; figures are medians. The
folder holds 4,000 images all the time, as the smallest of the banks does.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from measuring import machine
from published import PngBank
from torch import Tensor

from nayer_pl import Augmentation, MemoryBank

SHAPE, BATCH, ROUND = (3, 32, 32), 128, 400
SIZES = (4_000, 40_000, 320_000)
PREFETCHED = 8  # batches that the PNG loader makes ahead: two for each worker


def smooth_images(count: int) -> Tensor:
    """Coloured spots with a little noise, floats with channels last, as a generator makes them."""
    spots = F.interpolate(torch.rand(count, 3, 8, 8), size=SHAPE[1:], mode="bilinear")
    images = (spots + 0.05 * torch.randn(count, *SHAPE)).clamp_(0, 1)
    return images.contiguous(memory_format=torch.channels_last)


def full_bank(capacity: int, rounds: list[Tensor]) -> MemoryBank:
    """A bank in which every byte was written."""
    bank = MemoryBank(capacity, SHAPE)
    for i in range(capacity // ROUND):
        bank.add(rounds[i % len(rounds)], torch.arange(ROUND))
    return bank


def batch_of(bank: MemoryBank, rng: torch.Generator) -> Tensor:
    """A distillation batch as the student gets it: augmented floats in [0, 1]."""
    images, _ = bank.sample(BATCH, rng, Augmentation())
    return images.to(torch.float32).div_(255)


def seconds(work: Callable[[], object], times: int) -> float:
    """Mean of so many calls in a row, after one to warm up."""
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def png_batches(bank: PngBank, count: int) -> tuple[float, float]:
    """Seconds until the first batch, and per batch once those made ahead are used up."""
    started = time.perf_counter()
    moments = [time.perf_counter() for _ in bank.batches(PREFETCHED + count)]
    return moments[0] - started, (moments[-1] - moments[PREFETCHED - 1]) / count


def measure(folder: Path, repetitions: int) -> dict[str, float]:
    """Median milliseconds by name."""
    rounds = [smooth_images(ROUND) for _ in range(10)]
    labels, rng = torch.arange(ROUND), torch.Generator().manual_seed(0)
    read, written = PngBank(folder / "read", BATCH), PngBank(folder / "written", BATCH)
    for images in rounds:
        read.add(images)
    banks = {size: full_bank(size, rounds) for size in SIZES}
    taken: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        taken.setdefault(name, []).append(1000 * value)

    for i in range(repetitions):
        images = rounds[i % len(rounds)]
        for j in range(i, i + len(SIZES)):  # each of them is the first in its turn
            size = SIZES[j % len(SIZES)]
            bank = banks[size]
            note(f"batch_ms_{size}", seconds(partial(batch_of, bank, rng), 50))
            note(f"add_ms_{size}", seconds(partial(bank.add, images, labels), 10))
        untouched = MemoryBank(SIZES[-1], SHAPE)
        note("add_ms_untouched", seconds(partial(untouched.add, images, labels), 10))
        note("png_add_ms", seconds(partial(written.add, images), 2))
        start, batch = png_batches(read, 16)
        note("png_start_ms", start)
        note("png_batch_ms", batch)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", ".*will create 4 worker processes.*")
    with TemporaryDirectory() as folder:
        ms = measure(Path(folder), arguments.repetitions)
    small, large = SIZES[0], SIZES[-1]
    ratios = {
        "batch_ratio": ms["png_batch_ms"] / ms[f"batch_ms_{small}"],
        "add_ratio": ms["png_add_ms"] / ms[f"add_ms_{small}"],
        "flatness": ms[f"batch_ms_{large}"] / ms[f"batch_ms_{small}"],
        "add_flatness": ms[f"add_ms_{large}"] / ms[f"add_ms_{small}"],
    }
    names = [*(f"bank of {size:,}" for size in SIZES), "PNG files", "ratio", "largest : smallest"]
    print(f"\n{machine()}\n\n| milliseconds | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for kind, what in (("batch", f"batch of {BATCH}"), ("add", f"round of {ROUND} added")):
        flat = ratios["flatness" if kind == "batch" else "add_flatness"]
        ours = " | ".join(f"{ms[f'{kind}_ms_{size}']:.2f}" for size in SIZES)
        ratio = f"{ms[f'png_{kind}_ms']:.1f} | {ratios[f'{kind}_ratio']:.0f}x"
        print(f"| {what} | {ours} | {ratio} | {flat:.2f} |")
    print(f"\nFirst batch from new PNG workers: {ms['png_start_ms']:.0f} ms.")
    print(f"Round added where memory was never touched: {ms['add_ms_untouched']:.2f} ms.")
    if arguments.json:
        figures = {"machine": machine(), "threads": torch.get_num_threads(), **ratios, **ms}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
