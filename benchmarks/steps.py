"""A generator step and a distillation step of ours against the published pipeline's, interleaved.

python benchmarks/steps.py [--pair wrn40_2-wrn16_2] [--compile] [--precision 32-true] [--json FILE]
python benchmarks/steps.py --roots CHECKOUT CHECKOUT [--turns 3] [...]

A real Trainer does ours, Lightning's overhead included; after each round and each distillation step
the published rendering (published.py) does the same on its own copies of the networks.

With --roots, checkouts of this project take turns, each with its own steps.py in a process of its
own; figures are medians, and ratios are medians over turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import machine, matrix_rate
from side_by_side import EachItem, SideBySide

from nayer_pl import Plan


def main() -> None:
    """Measure, print a table, write JSON."""
    comparison = argparse.ArgumentParser(add_help=False)
    comparison.add_argument("--roots", type=Path, nargs="+", help="checkouts to compare")
    comparison.add_argument("--turns", type=int, default=3, help="runs of each of them")
    comparison.add_argument("--json", type=Path)
    parser = argparse.ArgumentParser(
        description=__doc__,
        parents=[comparison],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pair", default="wrn40_2-wrn16_2", help="teacher-student")
    parser.add_argument("--round-size", type=int, help="images in a generator step")
    parser.add_argument("--batch-size", type=int, default=128, help="of a distillation step")
    parser.add_argument("--steps", type=int, default=8, help="generator steps in a round")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.roots:
        compare(arguments, comparison.parse_known_args()[1])
        return
    on_gpu = torch.cuda.is_available()
    both = SideBySide(
        arguments.pair,
        Plan(
            epochs=1,
            warmup_epochs=0,
            rounds_per_epoch=arguments.repetitions + 2,
            kd_steps=2 * arguments.repetitions + 2,
            round_size=arguments.round_size or (400 if on_gpu else 60),
            batch_size=arguments.batch_size,
        ),
        arguments.steps,
        arguments.compile,
        arguments.precision,
    )
    measured = EachItem(both)
    both.run(measured)
    figures = {"pair": arguments.pair, **both.facts(), **summarize(measured, both)}
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def summarize(measured: EachItem, both: SideBySide) -> dict[str, Any]:
    """Medians, ratios, and the share of what matrix products reach on this machine."""
    rates = {
        str(dtype).removeprefix("torch."): matrix_rate(dtype, both.device)
        for dtype in (torch.float32, torch.bfloat16)
    }
    figures: dict[str, Any] = {f"matmul_rate_{name}": rate for name, rate in rates.items()}
    for kind, pairs in measured.seconds.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        figures[f"{kind}_warmup_seconds"] = measured.warmup[kind]
        figures[f"{kind}_step_seconds"] = ours
        figures[f"{kind}_step_seconds_published"] = theirs
        # Of pairs, because a shared machine is slow for both of a pair or for neither.
        figures[f"{kind}_step_ratio"] = statistics.median(b / a for a, b in pairs)
        figures[f"matmul_share_{kind}"] = measured.operations[kind] / ours / max(rates.values())
    return figures


def compare(arguments: argparse.Namespace, options: list[str]) -> None:
    """Let checkouts take turns; print a table, write JSON."""
    roots = [root.resolve() for root in arguments.roots]
    found: dict[str, list[dict[str, Any]]] = {str(root): [] for root in roots}
    for turn in range(arguments.turns):
        for root in roots if turn % 2 == 0 else reversed(roots):  # each is first in its turn
            found[str(root)].append(run_apart(root, options))
    print(
        f"\n{machine()}\n\n| checkout | generator step, ms | distillation step, ms |\n|---|---|---|"
    )
    first = next(iter(found.values()))
    for name, runs in found.items():
        cells = []
        for key in ("generator_step_seconds", "distillation_step_seconds"):
            ratio = statistics.median(a[key] / b[key] for a, b in zip(runs, first, strict=True))
            cells.append(f"{1e3 * statistics.median(r[key] for r in runs):.1f} ({ratio:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")


def run_apart(root: Path, options: list[str]) -> dict[str, Any]:
    """What a checkout's own steps.py measures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "benchmarks/steps.py", *options, "--json", str(figures)]
        print("$ cd", root, "&& python", *command[1:], flush=True)
        environment = {**os.environ, "PYTHONPATH": str(root / "src")}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(figures.read_text())


def print_table(figures: dict[str, Any]) -> None:
    """As Markdown."""
    print(f"\n{machine()}\n{figures['pair']}, {figures['precision']}, compile={figures['compile']}")
    print("\n| step | published, ms | ours, ms | ratio | share of the matrix rate | warm-up, s |")
    print("|---|---|---|---|---|---|")
    for kind in ("generator", "distillation"):
        ours, theirs = (figures[f"{kind}_step_seconds{who}"] for who in ("", "_published"))
        ratio, share = figures[f"{kind}_step_ratio"], figures[f"matmul_share_{kind}"]
        warmup = figures[f"{kind}_warmup_seconds"]
        print(
            f"| {kind} | {1e3 * theirs:.0f} | {1e3 * ours:.0f} | {ratio:.2f} | {share:.0%} "
            f"| {warmup:.0f} |"
        )
    rates = {name: figures[f"matmul_rate_{name}"] / 1e9 for name in ("float32", "bfloat16")}
    print("\nmatrix products: " + ", ".join(f"{n} {r:,.0f} GFLOP/s" for n, r in rates.items()))


if __name__ == "__main__":
    main()
