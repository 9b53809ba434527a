"""Runs in directories."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nayer_pl.report.run import LeftOut, Run, evaluations, is_one_of_ours, trained_a_teacher

CONFIG, SUMMARY, METRICS, PICTURE = "config.yaml", "summary.json", "metrics.csv", "samples.png"
# In a run's directory, how its teacher was trained, if it was; beside runs, the teachers' weights.
TEACHERS = ("teacher", "teachers")


def find_runs(roots: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read every run in these directories and below, each once.

    What lies inside a run (its teacher's training) is part of it. A directory beside runs that is
    none, or has no results, is named, and so is one of `roots` without any.
    """
    runs: dict[Path, Run] = {}
    left_out: dict[Path, LeftOut] = {}
    for root in map(Path, roots):
        folders = list(_candidates(root))
        if not folders:
            left_out[root.resolve()] = LeftOut(root.as_posix(), _nothing(root))
        for folder in folders:
            found = read_run(folder)
            if isinstance(found, Run):
                runs[folder.resolve()] = found
            else:
                left_out[folder.resolve()] = found
    return list(runs.values()), list(left_out.values())


def _candidates(folder: Path) -> Iterator[Path]:
    """Directories that are runs, and those beside them that should have been."""
    if (folder / CONFIG).is_file():
        yield folder
        return
    inside = _directories(folder)
    below = {path: list(_candidates(path)) for path in inside}
    beside_runs = any((path / CONFIG).is_file() for path in inside)
    for path, found in below.items():
        if found:
            yield from found
        elif beside_runs:
            yield path


def _directories(folder: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.is_dir() and path.name not in TEACHERS and not path.name.startswith(".")
        )
    except OSError:  # not there, or nobody may look
        return []


def read_run(folder: Path) -> Run | LeftOut:
    """The run in this directory, or why there is none to report."""
    name, reading = folder.as_posix(), CONFIG
    if not (folder / CONFIG).is_file():
        return LeftOut(name, "no run in it: it never began")
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
        if not is_one_of_ours(config):
            return LeftOut(name, f"its {CONFIG} is not one of nayer_pl")
        if trained_a_teacher(config):
            return LeftOut(name, "it trained a teacher")
        reading = METRICS
        measured = evaluations(_rows(folder / METRICS))
        if not (folder / SUMMARY).is_file():
            return LeftOut(name, _how_far(measured))
        reading = SUMMARY
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if not summary or not isinstance(summary, dict):
            return LeftOut(name, f"its {SUMMARY} is not one of nayer_pl")
        reading = PICTURE
        picture = (folder / PICTURE).read_bytes() if (folder / PICTURE).is_file() else None
        return Run(name, config, summary, measured, picture)
    except (OSError, ValueError, csv.Error, YAMLError, OmegaConfBaseException) as error:
        return LeftOut(name, f"its {reading} cannot be read: {' '.join(str(error).split())}")


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _nothing(root: Path) -> str:
    if root.is_dir():
        return "no runs in it"
    return "not a directory" if root.exists() else "there is no such directory"


def _how_far(measured: tuple[Any, ...]) -> str:
    if not measured:
        return "not finished, and not evaluated"
    last = measured[-1]
    return f"not finished: {100 * last.accuracy:.1f} % after {last.updates:,} student updates"
