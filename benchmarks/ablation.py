"""The paper's questions, on digits: NAYER with one thing changed at a time, three seeds.

python benchmarks/ablation.py [--out runs/benchmark_ablation] [--seeds 0 1 2]
"""

import argparse
import json
import re
from pathlib import Path

from measuring import machine, mean_and_spread, run_job

VARIANTS = {
    "label text (NAYER)": ["model.conditioning=lte"],
    "one-hot label": ["model.conditioning=onehot"],
    "noise, no label": ["model.conditioning=noise"],
    "label text, noisy layer drawn once": ["model.reinitialise_noisy_layer=false"],
    "a noisy layer for every image (1 to 1)": ["model.labels_per_layer=1"],
    "prompt: the name alone": ["prompts=['{name}']"],
    "prompt: a photo of a NAME": ["prompts=['a photo of a {name}']"],
    "generator lives 1 epoch": ["model.generator_life=1"],
    "generator lives 3 epochs": ["model.generator_life=3"],
    "bank keeps the last 1,000 images": ["bank.capacity=1000"],
    "bank keeps the last 400 images": ["bank.capacity=400"],
}

COLUMNS = {
    "synthesis loss": ("synthesis_loss", 1, 2),
    "wanted label seen by the teacher, %": ("label_agreement", 100, 1),
    "distance within a class": ("diversity", 1, 3),
    "student, %": ("student_accuracy", 100, 1),
}


def main() -> None:
    """Run what is not there yet under --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="for every run, such as model.bn_weight=10")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    results = {
        name: [
            run_job(
                out / f"{'_'.join(re.findall(r'[a-z0-9]+', name.lower()))}_seed{seed}",
                [
                    "experiment=digits",
                    f"seed={seed}",
                    f"paths.teachers={out / 'teachers'}/seed{seed}",
                    *flags,
                    *arguments.overrides,
                ],
            )
            for seed in arguments.seeds
        ]
        for name, flags in VARIANTS.items()
    }
    print(f"\n{machine()}\n\n| variant | {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * (len(COLUMNS) + 1)}")
    for name, runs in results.items():
        cells = [
            mean_and_spread([run[key] for run in runs], scale, digits)
            for key, scale, digits in COLUMNS.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    (out / "ablation.json").write_text(json.dumps({"machine": machine(), **results}, indent=2))


if __name__ == "__main__":
    main()
