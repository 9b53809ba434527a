"""Runs as they are reported, read from directories or from Weights & Biases."""

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nayer_pl.errors import friendly_errors
from nayer_pl.report.configs import Settings, settings_of, title_of

CONFIG, SUMMARY, METRICS, SAMPLES = "config.yaml", "summary.json", "metrics.csv", "samples.png"
# Not searched for runs: a run's own teacher training, and the weights of teachers beside runs.
TEACHERS = ("teacher", "teachers")
PHASES = ("synthesis", "distillation", "training")
METRIC_NAMES = [
    "student_updates", "step", "trainer/global_step", "val/student_accuracy", "val/accuracy",
    "synthesis/steps", *(f"time/{phase}" for phase in PHASES),
]  # fmt: skip


class LeftOut(NamedTuple):
    """Something that is not in the tables, and the reason."""

    name: str
    why: str


def read_curve(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The student's "accuracy" in [0, 1] and its cost up to then, by student updates.

    The cost is in "seconds" of synthesis and distillation, without evaluation and the teacher's
    training, and in "steps" of synthesis, summed over all ranks. NaN is unknown.

    The rows are those of `metrics.csv` or of a W&B history, in any order; an accuracy and its cost
    may be in different ones (see `PhaseTimer`).
    """
    table = pd.DataFrame(list(rows), columns=METRIC_NAMES)
    table = table.apply(pd.to_numeric, errors="coerce").astype(float)  # an empty cell is NaN
    table = table.replace([math.inf, -math.inf], math.nan)
    # Lightning's own rows have the index of the last step, which counts from 0.
    step = table["step"].fillna(table["trainer/global_step"]) + 1
    table["updates"] = table["student_updates"].fillna(step)
    merged = table.groupby("updates").last()
    merged.index = merged.index.astype(int)
    accuracy = merged["val/student_accuracy"].fillna(merged["val/accuracy"])
    seconds = merged.filter(like="time/").sum(axis=1, min_count=1)
    curve = {"accuracy": accuracy, "seconds": seconds, "steps": merged["synthesis/steps"]}
    return pd.DataFrame(curve).dropna(subset="accuracy")


@dataclass(frozen=True)
class Run:
    """What a run's configuration says, and its results.

    `teacher` is the same for runs with the same teacher; `curve` is as `read_curve` makes it, and
    `picture` is `samples.png`.
    """

    name: str
    method: str
    seed: int
    title: str
    settings: Settings
    teacher: tuple[str, int, str]
    summary: Mapping[str, Any] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=lambda: read_curve([]))
    picture: bytes | None = None

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The finite numbers of the summary, and what follows from them and the curve.

        What is not known is missing or None, and infinity is what never happened.
        """
        found: dict[str, Any] = {
            key: value
            for key, value in self.summary.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        accuracy = found.get("student_accuracy", found.get("accuracy"))  # of `model=scratch`
        if (teacher := found.get("teacher_accuracy")) is not None:
            for percent in (90, 95, 99):
                found[f"seconds_to_{percent}"] = seconds_to(percent / 100 * teacher, self.curve)
        return {
            **found,
            "student_accuracy": accuracy,
            "share_of_teacher": accuracy / teacher if teacher and accuracy is not None else None,
            "seconds_student": found.get("seconds_distillation", found.get("seconds_training")),
            "seconds": sum(found.get(f"seconds_{phase}", 0.0) for phase in PHASES) or None,
            "student_updates": found.get("student_updates") or max(self.curve.index, default=None),
        }


def seconds_to(accuracy: float, curve: pd.DataFrame) -> float | None:
    """Seconds until the first evaluation at or above this accuracy.

    Infinity if it was never reached, None if that is not known.
    """
    if curve["seconds"].isna().all():
        return None
    reached = curve["seconds"][curve["accuracy"] >= accuracy]
    seconds = next(iter(reached), math.inf)
    return None if math.isnan(seconds) else seconds


def find_runs(roots: Sequence[str | Path]) -> list[Run | LeftOut]:
    """Read every run in these directories and below, each once.

    A directory beside runs that is not a run or has no results is left out with a reason, and so
    is a root without any run.
    """
    found: dict[Path, Run | LeftOut] = {}
    for root in map(Path, roots):
        folders = list(_run_folders(root))
        found.update((folder.resolve(), _read_folder(folder)) for folder in folders)
        if not folders:
            why = "no runs in it" if root.is_dir() else "there is no such directory"
            found[root.resolve()] = LeftOut(root.as_posix(), why)
    return list(found.values())


def fetch_runs(project: str) -> list[Run | LeftOut]:
    """Read every run of a project ("entity/project") at Weights & Biases.

    Raises:
        InputError: it cannot be read.
    """
    import wandb

    with friendly_errors(
        f"The runs of '{project}' cannot be read from Weights & Biases",
        "give ENTITY/PROJECT, and log in with `wandb login`",
    ):
        return [_read_online(run) for run in wandb.Api().runs(project)]


def configured(name: str, config: Any) -> Run | LeftOut:
    """The run of this configuration, still without results."""
    try:
        data, seed = config["data"]["name"], int(config["seed"])
        weights = (config.get("teacher") or {}).get("weights")
        trained = weights and weights == (config.get("export") or {}).get("path")
        about = title_of(config), settings_of(config), (str(data), seed, str(weights))
        run = Run(name, str(config["model_name"]), seed, *about)
    except (AttributeError, KeyError, TypeError, ValueError):
        return LeftOut(name, f"its {CONFIG} is not one of nayer_pl")
    return LeftOut(name, "it trained a teacher") if trained else run


def _run_folders(folder: Path) -> Iterator[Path]:
    """Directories that are runs, and those beside them that should have been."""
    if (folder / CONFIG).is_file():
        yield folder  # what lies inside a run is part of it
        return
    inside: list[Path] = []
    with suppress(OSError):  # it is missing, or must not be read
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    inside = [path for path in inside if path.name not in TEACHERS and path.name[0] != "."]
    beside_runs = any((path / CONFIG).is_file() for path in inside)
    for path in inside:
        yield from list(_run_folders(path)) or ([path] if beside_runs else [])


def _read_folder(folder: Path) -> Run | LeftOut:
    name, reading = folder.as_posix(), CONFIG
    if not (folder / CONFIG).is_file():
        return LeftOut(name, "no run in it: it never began")
    try:
        run = configured(name, OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
        if isinstance(run, LeftOut):
            return run
        reading = METRICS
        lines = (folder / METRICS).read_text("utf-8") if (folder / METRICS).is_file() else ""
        curve = read_curve(csv.DictReader(lines.splitlines()))
        if not (folder / SUMMARY).is_file():
            state = "not evaluated yet"
            for updates, accuracy in curve["accuracy"][-1:].items():
                state = f"{100 * accuracy:.1f} % after {updates:,} student updates"
            return LeftOut(name, f"not finished: {state}")
        reading = SUMMARY
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        if not summary or not isinstance(summary, dict):
            return LeftOut(name, f"its {SUMMARY} is not one of nayer_pl")
        reading = SAMPLES
        picture = (folder / SAMPLES).read_bytes() if (folder / SAMPLES).is_file() else None
        return replace(run, summary=summary, curve=curve, picture=picture)
    except (OSError, ValueError, csv.Error, YAMLError, OmegaConfBaseException) as error:
        return LeftOut(name, f"its {reading} cannot be read: {' '.join(str(error).split())}")


def _read_online(online: Any) -> Run | LeftOut:
    run = configured("/".join(online.path), dict(online.config))
    if isinstance(run, LeftOut):
        return run
    if online.state != "finished":
        return LeftOut(run.name, f"not finished: it is {online.state}")
    summary = {key: value for key, value in dict(online.summary).items() if "/" not in key}
    if "versions" not in summary:  # the last thing that a run does
        return LeftOut(run.name, "not finished: it was ended before its summary")
    rows = list(online.scan_history())
    names = [name for row in rows for name in (row.get("bank/samples") or {}).get("filenames", ())]
    picture = None
    with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # none, or deleted there
        online.file(names[-1]).download(root=folder, replace=True)
        picture = (Path(folder) / names[-1]).read_bytes()
    return replace(run, summary=summary, curve=read_curve(rows), picture=picture)
