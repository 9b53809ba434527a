"""Runs as they are reported, read from directories or from Weights & Biases."""

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nayer_pl.errors import friendly_errors

CONFIG, SUMMARY, METRICS, SAMPLES = "config.yaml", "summary.json", "metrics.csv", "samples.png"
# Not searched for runs: a run's own teacher training, and the weights of teachers beside runs.
TEACHERS = ("teacher", "teachers")


class LeftOut(NamedTuple):
    """Something that is not in the tables, and the reason."""

    name: str
    why: str


class Evaluation(NamedTuple):
    """The student's accuracy, in [0, 1], after some updates, and its cost up to then.

    The cost is in seconds of synthesis and distillation, without evaluation and the teacher's
    training, and in synthesis steps, summed over all ranks. None is unknown.
    """

    updates: int
    accuracy: float
    seconds: float | None
    steps: float | None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        name: its directory, or its path at Weights & Biases.
        config: the whole configuration, resolved.
        summary: as in `summary.json`.
        evaluations: in the order of student updates.
        picture: `samples.png`, if there is one.

    Example:
        >>> config = {"model_name": "nayer", "seed": 0, "data": {"name": "digits"}}
        >>> curve = (Evaluation(100, 0.6, 5.0, 40), Evaluation(200, 0.8, 11.0, 80))
        >>> run = Run("runs/1", config, {"teacher_accuracy": 0.8}, curve)
        >>> run.seconds_to(0.9)
        11.0
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    picture: bytes | None = None

    @property
    def method(self) -> str:
        """Its `model_name`."""
        return str(self.config["model_name"])

    @property
    def seed(self) -> int:
        """The seed of everything random in it."""
        return int(self.config["seed"])

    @property
    def uses_real_images(self) -> bool:
        """Whether the student learned from real images, and nothing was synthesized."""
        return bool(self.summary.get("seconds_training"))

    def number(self, *names: str) -> float | None:
        """The first of these entries of the summary that is a finite number."""
        values = map(self.summary.get, names)
        return next((v for v in values if isinstance(v, int | float) and math.isfinite(v)), None)

    def accuracy(self) -> float | None:
        """The student's after the last epoch; `model=scratch` has it under another name."""
        return self.number("student_accuracy", "accuracy")

    def share_of_teacher(self) -> float | None:
        """The student's accuracy as a share of its teacher's."""
        teacher, student = self.number("teacher_accuracy"), self.accuracy()
        return None if student is None or not teacher else student / teacher

    def updates(self) -> float | None:
        """Student updates in the whole run."""
        last = self.evaluations[-1].updates if self.evaluations else None
        return self.number("student_updates") or last

    def seconds(self) -> float | None:
        """Seconds of all phases but the teacher's training."""
        names = ("seconds_synthesis", "seconds_distillation", "seconds_training")
        return sum(self.number(name) or 0.0 for name in names) or None

    def seconds_to(self, share: float) -> float | None:
        """Seconds until the first evaluation at or above this share of the teacher's accuracy.

        Infinity if it was never reached, None if that is not known.
        """
        teacher = self.number("teacher_accuracy")
        if teacher is None or all(each.seconds is None for each in self.evaluations):
            return None
        reached = (each.seconds for each in self.evaluations if each.accuracy >= share * teacher)
        return next(reached, math.inf)


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


def evaluations(rows: Iterable[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    """Join accuracies with their cost, by student updates.

    Args:
        rows: of `metrics.csv` or of a W&B history, in any order; an accuracy and its cost may be
            in different rows (see `PhaseTimer`).
    """
    merged: dict[int, dict[str, float]] = {}
    for row in rows:
        numbers = {}
        for key, value in row.items():
            with suppress(TypeError, ValueError):  # an empty cell, a picture
                if math.isfinite(number := float(value)):
                    numbers[key] = number
        # Lightning's own rows have the index of the last step, which counts from 0.
        step = numbers.get("step", numbers.get("trainer/global_step", -2)) + 1
        merged.setdefault(int(numbers.get("student_updates", step)), {}).update(numbers)
    merged.pop(-1, None)  # rows without any step
    found = []
    for updates, numbers in sorted(merged.items()):
        accuracy = numbers.get("val/student_accuracy", numbers.get("val/accuracy"))
        seconds = [value for key, value in numbers.items() if key.startswith("time/")]
        if accuracy is not None:
            spent = sum(seconds) if seconds else None
            found.append(Evaluation(updates, accuracy, spent, numbers.get("synthesis/steps")))
    return tuple(found)


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
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
        if reason := _not_a_student(config):
            return LeftOut(name, reason)
        reading = METRICS
        lines = (folder / METRICS).read_text("utf-8") if (folder / METRICS).is_file() else ""
        curve = evaluations(csv.DictReader(lines.splitlines()))
        if not (folder / SUMMARY).is_file():
            state = "not evaluated yet"
            for each in curve[-1:]:
                state = f"{100 * each.accuracy:.1f} % after {each.updates:,} student updates"
            return LeftOut(name, f"not finished: {state}")
        reading = SUMMARY
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        if not summary or not isinstance(summary, dict):
            return LeftOut(name, f"its {SUMMARY} is not one of nayer_pl")
        reading = SAMPLES
        picture = (folder / SAMPLES).read_bytes() if (folder / SAMPLES).is_file() else None
        return Run(name, config, summary, curve, picture)
    except (OSError, ValueError, csv.Error, YAMLError, OmegaConfBaseException) as error:
        return LeftOut(name, f"its {reading} cannot be read: {' '.join(str(error).split())}")


def _read_online(run: Any) -> Run | LeftOut:
    name, config = "/".join(run.path), dict(run.config)
    if reason := _not_a_student(config):
        return LeftOut(name, reason)
    if run.state != "finished":
        return LeftOut(name, f"not finished: it is {run.state}")
    summary = {key: value for key, value in dict(run.summary).items() if "/" not in key}
    if "versions" not in summary:  # the last thing that a run does
        return LeftOut(name, "not finished: it was ended before its summary")
    rows = list(run.scan_history())
    names = [name for row in rows for name in (row.get("bank/samples") or {}).get("filenames", ())]
    picture = None
    with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # none, or deleted there
        run.file(names[-1]).download(root=folder, replace=True)
        picture = (Path(folder) / names[-1]).read_bytes()
    return Run(name, config, summary, evaluations(rows), picture)


def _not_a_student(config: Any) -> str | None:
    """The reason why no student of this project comes out of a run with this configuration."""
    try:
        parts = [config.get(part) or {} for part in ("teacher", "student", "trainer", "export")]
        nodes = [*parts, config["data"], *(part.get("architecture") or {} for part in parts[:2])]
        known = all(isinstance(node, Mapping) for node in nodes) and "name" in config["data"]
        known = known and isinstance(config["seed"], int) and "model_name" in config
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        return f"its {CONFIG} is not one of nayer_pl"
    teacher, written = parts[0].get("weights"), parts[3].get("path")
    return "it trained a teacher" if written and written == teacher else None
