"""Tables and curves of any set of runs.

python -m nayer_pl.report RUN_DIR... [--wandb ENTITY/PROJECT] [--out report] [--title TITLE]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nayer_pl.errors import InputError, NayerError
from nayer_pl.report import curves, pictures
from nayer_pl.report.columns import figures
from nayer_pl.report.find import find_runs
from nayer_pl.report.groups import Section, gaps, sections
from nayer_pl.report.online import fetch_runs
from nayer_pl.report.page import page
from nayer_pl.report.run import LeftOut, Run
from nayer_pl.report.table import markdown
from nayer_pl.runtime.files import cannot_write, write_durably


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, write the four files, and say where they are."""
    parser = argparse.ArgumentParser(
        prog="python -m nayer_pl.report",
        description="Tables and curves of any set of runs: report.html, .png, .md and .json.",
    )
    parser.add_argument("run_dirs", nargs="*", help="of runs, or of anything that holds runs")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="all runs of a W&B project")
    parser.add_argument("--out", default="report", help="the folder to write to")
    parser.add_argument("--title", default="Data-free distillation")
    given = parser.parse_args(arguments)
    runs, left_out = find_runs(given.run_dirs)
    try:
        if given.wandb:
            fetched, others = fetch_runs(given.wandb)
            runs, left_out = runs + fetched, left_out + others
        write_report(Path(given.out), given.title, runs, left_out)
    except NayerError as error:
        sys.exit(f"error: {error}")
    for each in left_out:
        print(f"not in the tables: {each.name}: {each.why}", file=sys.stderr)
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{number}: {Path(given.out) / 'report.html'}")


def write_report(
    folder: Path, title: str, runs: Sequence[Run], left_out: Sequence[LeftOut] = ()
) -> None:
    """Write `report.html`, `report.png`, `report.md` and `report.json`.

    Args:
        folder: of the four; files of an earlier report are replaced.
        title: of the page.
        runs: finished ones.
        left_out: what is named, because it could not be among them.

    Raises:
        InputError: there are no runs, or the files cannot be written.
    """
    if not runs:
        reasons = "".join(f"\n  {each.name}: {each.why}" for each in left_out)
        raise InputError(
            "There is no finished run to report; name directories of runs (they hold config.yaml "
            f"and summary.json), or --wandb ENTITY/PROJECT.{reasons}"
        )
    found = sections(runs)
    files = {
        "report.html": page(title, found, left_out).encode(),
        "report.png": pictures.png(found),
        "report.md": markdown(title, found, left_out, "report.png").encode(),
        "report.json": json.dumps(_plain(title, found, left_out), indent=2).encode(),
    }
    try:
        for name, content in files.items():
            write_durably(folder / name, content)
    except OSError as error:
        raise InputError(f"{cannot_write(error)}; choose another folder with --out.") from error


def _plain(title: str, found: Sequence[Section], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    return {
        "title": title,
        "sections": [
            {
                "title": section.title,
                "shared": section.shared,
                "gaps": gaps(section),
                "methods": [
                    {
                        "label": method.label,
                        "seeds": method.seeds,
                        "runs": [run.name for run in method.runs],
                        "settings": method.settings,
                        "figures": figures(method.runs),
                        "curves": {
                            axis: [point._asdict() for point in curves.points(method.runs, axis)]
                            for axis in curves.AXES
                        },
                    }
                    for method in section.methods
                ],
            }
            for section in found
        ],
        "left_out": [each._asdict() for each in left_out],
    }


if __name__ == "__main__":
    main()
