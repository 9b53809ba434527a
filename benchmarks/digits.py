"""The README's table: `experiment=digits`, a teacher and a student for each of three seeds.

python benchmarks/digits.py [--out runs/benchmark_digits] [--seeds 0 1 2]
"""

import argparse
import json
from pathlib import Path

from measuring import machine, mean_and_spread, run_job


def main() -> None:
    """Run what is not there yet under --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    runs = [
        run_job(
            out / f"seed{seed}",
            ["experiment=digits", f"seed={seed}", f"paths.teachers={out / 'teachers'}/seed{seed}"],
        )
        for seed in arguments.seeds
    ]
    columns = {
        "teacher, %": ("teacher_accuracy", 100, 1),
        "student, %": ("student_accuracy", 100, 1),
        "agreement, %": ("agreement", 100, 1),
        "teacher, s": ("seconds_teacher", 1, 0),
        "synthesis, s": ("seconds_synthesis", 1, 0),
        "distillation, s": ("seconds_distillation", 1, 0),
        "whole command, s": ("seconds_wall", 1, 0),
    }
    print(f"\n{machine()}\n\n| seed | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for run in runs:
        cells = [f"{run[key] * scale:.{digits}f}" for key, scale, digits in columns.values()]
        print(f"| {run['seed']} | {' | '.join(cells)} |")
    means = [
        mean_and_spread([run[key] for run in runs], scale, digits)
        for key, scale, digits in columns.values()
    ]
    print(f"| mean | {' | '.join(means)} |")
    (out / "digits.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
