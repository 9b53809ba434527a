"""Tables and curves of any set of runs.

python -m nayer_pl.report RUN_DIR... [--wandb ENTITY/PROJECT] [--out report] [--title TITLE]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nayer_pl.errors import InputError, NayerError
from nayer_pl.report.groups import sections
from nayer_pl.report.render import AXES, draw, mean_curve, page
from nayer_pl.report.runs import LeftOut, Run, fetch_runs, find_runs
from nayer_pl.report.tables import figures, markdown
from nayer_pl.runtime.files import cannot_write, write_durably


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, write the four files, and print where they are."""
    parser = argparse.ArgumentParser(
        prog="python -m nayer_pl.report",
        description="Tables and curves of any set of runs: report.html, .png, .md and .json.",
    )
    parser.add_argument("run_dirs", nargs="*", help="directories of runs, or above them")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="all runs of a W&B project")
    parser.add_argument("--out", default="report", type=Path, help="the folder to write to")
    parser.add_argument("--title", default="Data-free distillation")
    given = parser.parse_args(arguments)
    try:
        found = find_runs(given.run_dirs) + (fetch_runs(given.wandb) if given.wandb else [])
        runs = [each for each in found if isinstance(each, Run)]
        left_out = [each for each in found if isinstance(each, LeftOut)]
        write_report(given.out, given.title, runs, left_out)
    except NayerError as error:
        sys.exit(f"error: {error}")
    for name, why in left_out:
        print(f"not in the tables: {name}: {why}", file=sys.stderr)
    print(f"{len(runs)} run{'s' * (len(runs) != 1)}: {given.out / 'report.html'}")


def write_report(
    folder: Path, title: str, runs: Sequence[Run], left_out: Sequence[LeftOut]
) -> None:
    """Write `report.html`, `report.png`, `report.md` and `report.json`.

    Raises:
        InputError: there are no runs, or the files cannot be written.
    """
    if not runs:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out)
        raise InputError(
            "There is no finished run to report; name directories of runs (they hold config.yaml "
            f"and summary.json), or --wandb ENTITY/PROJECT.{reasons}"
        )
    found = sections(runs)
    numbers = {
        "title": title,
        "sections": [
            {
                "title": section.title,
                "shared": section.shared,
                "gaps": section.gaps(),
                "methods": [
                    {
                        "label": method.label,
                        "seeds": method.seeds,
                        "runs": [run.name for run in method.runs],
                        "settings": method.settings,
                        "figures": figures(method.runs),
                        "curves": {
                            axis: mean_curve(method.runs, axis).to_dict("records") for axis in AXES
                        },
                    }
                    for method in section.methods
                ],
            }
            for section in found
        ],
        "left_out": [each._asdict() for each in left_out],
    }
    files = {
        "report.html": page(title, found, left_out).encode(),
        "report.png": draw(found, "png"),
        "report.md": markdown(title, found, left_out).encode(),
        "report.json": json.dumps(numbers, indent=2).encode(),
    }
    try:
        for name, content in files.items():
            write_durably(folder / name, content)
    except OSError as error:
        raise InputError(f"{cannot_write(error)}; choose another folder with --out.") from error


if __name__ == "__main__":
    main()
