"""The paper's questions: NAYER with one thing changed at a time, several seeds.

python benchmarks/ablation.py [--experiment digits] [--questions conditioning noisy_layer ...]
    [--embeddings FILE] [--seeds 0 1 2] [--out DIR] [-- override ...]

The question of the text encoder needs embeddings of the same class names by another one, such as
those that NAYER's authors published.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from measuring import machine, mean_and_spread, run_job

QUESTIONS: dict[str, dict[str, list[str]]] = {
    "conditioning": {
        "one-hot label": ["model.conditioning=onehot"],
        "noise, no label": ["model.conditioning=noise"],
    },
    "noisy_layer": {
        "label text, noisy layer drawn once": ["model.reset_noisy_layer=false"],
        "a noisy layer for every image (1 to 1)": ["model.labels_per_layer=1"],
    },
    "prompt": {
        "prompt: the name alone": ["prompts=['{name}']"],
        "prompt: a photo of a NAME": ["prompts=['a photo of a {name}']"],
    },
    "generator_life": {
        "generator lives 1 epoch": ["model.generator_life=1"],
        "generator lives 3 epochs": ["model.generator_life=3"],
    },
    "bank_size": {
        "bank keeps the last 1,000 images": ["bank.capacity=1000"],
        "bank keeps the last 400 images": ["bank.capacity=400"],
    },
}

COLUMNS = {
    "synthesis loss": ("synthesis_loss", 1, 2),
    "target label seen by the teacher, %": ("label_agreement", 100, 1),
    "distance within a class": ("diversity", 1, 3),
    "student, %": ("student_accuracy", 100, 1),
}


def main() -> None:
    """Run what is not there yet under --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument(
        "--questions", nargs="+", choices=[*QUESTIONS, "text_encoder"], default=list(QUESTIONS)
    )
    parser.add_argument("--embeddings", type=Path, help="for the question of the text encoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="for every run, such as model.bn_weight=10")
    arguments = parser.parse_args()
    if ("text_encoder" in arguments.questions) != bool(arguments.embeddings):
        parser.error("--questions text_encoder and --embeddings belong together")
    variants: dict[str, list[str]] = {"label text (NAYER)": []}
    for question in arguments.questions:
        variants |= QUESTIONS.get(question, {})
    if arguments.embeddings:
        file = f"text_encoder.path={arguments.embeddings.resolve()}"
        variants["label text of the given embeddings"] = ["text_encoder=file", file]
    out = (arguments.out or Path(f"runs/ablation_{arguments.experiment}")).resolve()
    results = {
        name: [run(arguments, out, name, flags, seed) for seed in arguments.seeds]
        for name, flags in variants.items()
    }
    print_table(results)
    (out / "ablation.json").write_text(json.dumps({"machine": machine(), **results}, indent=2))


def run(
    arguments: argparse.Namespace, out: Path, name: str, flags: list[str], seed: int
) -> dict[str, Any]:
    """One student; a seed's students have the same teacher."""
    options = [f"experiment={arguments.experiment}", f"seed={seed}"]
    options += [f"paths.teachers={out / 'teachers'}/seed{seed}", *arguments.overrides, *flags]
    return run_job(out / f"{'_'.join(re.findall(r'[a-z0-9]+', name.lower()))}_seed{seed}", options)


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """As Markdown."""
    print(f"\n{machine()}\n\n| variant | {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * (len(COLUMNS) + 1)}")
    for name, runs in results.items():
        cells = [
            mean_and_spread([run[key] for run in runs], scale, digits)
            for key, scale, digits in COLUMNS.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
