"""The memory bank against a folder of PNG files: batches, rounds, checkpoints; what growing costs.

python benchmarks/bank.py [--json FILE]

Everything is measured in turn, again and again, while the other side rests; figures are medians.
The folder holds 4,000 images all the time, as the smallest of the banks does.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from measuring import machine
from published import PngBank
from torch import Tensor

from nayer_pl import MemoryBank, RandomCropFlip
from nayer_pl.bank.files import BankFiles

SHAPE, BATCH, ROUND = (3, 32, 32), 128, 400
SIZES = (4_000, 40_000, 320_000)
PREFETCHED = 8  # batches that the PNG loader makes ahead: two for each worker


def smooth_images(count: int) -> Tensor:
    """Colored spots with a little noise, floats with channels last, as a generator makes them."""
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
    images, _ = bank.sample(BATCH, rng, RandomCropFlip())
    return images.to(torch.float32).div_(255)


def seconds(work: Callable[[], object], times: int, warm_up: int = 1) -> float:
    """Mean of this many calls in a row, after one or none to warm up."""
    for _ in range(warm_up):
        work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def fill(folder: Path) -> None:
    """Write as many PNG files as the smallest bank has images."""
    bank = PngBank(folder, BATCH)
    for _ in range(SIZES[0] // ROUND):
        bank.add(smooth_images(ROUND))


def measure_png(folder: Path) -> dict[str, float]:
    """Seconds of the other side: a round written, the first batch, and one in a steady stream.

    It needs a process of its own. Workers are copies of the process that starts them, and after
    that every page of a bank in it would have to be copied, or freed for writing, once more.
    """
    warnings.filterwarnings("ignore", ".*will create 4 worker processes.*")
    set_start_method(get_all_start_methods()[0], force=True)  # workers as anywhere else
    written = PngBank(folder / "written", BATCH)
    written.rounds = len(list(written.folder.iterdir())) // ROUND  # none is written over
    add = seconds(partial(written.add, smooth_images(ROUND)), 2)
    count, started = 16, time.perf_counter()
    batches = PngBank(folder, BATCH).batches(PREFETCHED + count)
    moments = [time.perf_counter() for _ in batches]
    batch = (moments[-1] - moments[PREFETCHED - 1]) / count
    return {"png_add_ms": add, "png_start_ms": moments[0] - started, "png_batch_ms": batch}


def measure_checkpoint(folder: Path, bank: MemoryBank, images: Tensor) -> dict[str, float]:
    """What the bank's part of checkpoints costs: the first one, the next ones, and resuming."""
    segments, labels = BankFiles(folder, "bank"), torch.arange(ROUND)

    def save() -> dict[str, Any]:
        return segments.save(bank)

    first = seconds(save, 1, warm_up=0)
    more: list[float] = []
    for _ in range(9):
        bank.add(images, labels)
        more.append(seconds(save, 1, warm_up=0))
    state, again = save(), MemoryBank(bank.capacity, SHAPE)
    load = seconds(partial(BankFiles(folder, "bank").load, again, state), 1, warm_up=0)
    if not again.images.equal(bank.images):
        raise SystemExit("The bank that came back from its files is another one.")
    return {
        "checkpoint_first_seconds": first,
        "checkpoint_next_ms": 1000 * statistics.median(more),
        "checkpoint_load_seconds": load,
        "checkpoint_record_bytes": float(len(json.dumps(state))),
    }


def measure(folder: Path, repetitions: int) -> dict[str, float]:
    """Median milliseconds by name, and what checkpoints cost."""
    rounds = [smooth_images(ROUND) for _ in range(10)]
    labels, rng = torch.arange(ROUND), torch.Generator().manual_seed(0)
    taken: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        taken.setdefault(name, []).append(1000 * value)

    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        other.submit(fill, folder).result()
        banks = {size: full_bank(size, rounds) for size in SIZES}
        for i in range(repetitions):
            images = rounds[i % len(rounds)]
            for j in range(i, i + len(SIZES)):  # each of them is the first in its turn
                size = SIZES[j % len(SIZES)]
                bank = banks[size]
                note(f"batch_ms_{size}", seconds(partial(batch_of, bank, rng), 50))
                note(f"add_ms_{size}", seconds(partial(bank.add, images, labels), 10))
            untouched = MemoryBank(SIZES[-1], SHAPE)
            note("add_ms_untouched", seconds(partial(untouched.add, images, labels), 10))
            for name, value in other.submit(measure_png, folder).result().items():
                note(name, value)
    figures = {name: statistics.median(values) for name, values in taken.items()}
    return figures | measure_checkpoint(folder / "segments", banks[SIZES[-1]], rounds[0])


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
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
    print(
        f"Checkpoints with {large:,} images: the first writes all of them in "
        f"{ms['checkpoint_first_seconds']:.1f} s; each with a round more, in "
        f"{ms['checkpoint_next_ms']:.0f} ms; they name the bank's files in "
        f"{ms['checkpoint_record_bytes'] / 1000:.1f} kB. All images come back, and are checked, in "
        f"{ms['checkpoint_load_seconds']:.1f} s."
    )
    if arguments.json:
        figures = {"machine": machine(), "threads": torch.get_num_threads(), **ratios, **ms}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
