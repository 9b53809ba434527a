"""A run as it is reported: configuration, summary, and evaluations with what they had cost."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""A row of `metrics.csv`, or of the history that Weights & Biases keeps."""

ACCURACIES = ("val/student_accuracy", "val/accuracy")


class LeftOut(NamedTuple):
    """Something that is not in the tables."""

    name: str
    why: str


class Evaluation(NamedTuple):
    """How good the student was, and what that had cost."""

    updates: int
    accuracy: float
    """A fraction in [0, 1]."""
    seconds: float | None
    """Of synthesis and distillation; evaluation and the teacher's training are not among them."""
    steps: float | None
    """Of synthesis, over all ranks."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        name: its directory, or its path at Weights & Biases.
        config: the whole configuration, resolved.
        summary: as in `summary.json`.
        evaluations: in the order of student updates.
        picture: `samples.png`, if there is one.
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
        """Of everything random."""
        return int(self.config["seed"])

    @property
    def sees_real_images(self) -> bool:
        """Whether the student learned from real images, and nothing was synthesized."""
        return bool(self.summary.get("seconds_training"))

    @property
    def student_accuracy(self) -> float | None:
        """After the last epoch; of `model=scratch` too, which has no teacher."""
        return self.number("student_accuracy", "accuracy")

    @property
    def student_updates(self) -> float | None:
        """In the whole run."""
        last = self.evaluations[-1].updates if self.evaluations else None
        return self.number("student_updates") or last

    @property
    def seconds(self) -> float | None:
        """Of all phases."""
        phases = ("synthesis", "distillation", "training")
        known = [self.number(f"seconds_{phase}") for phase in phases]
        return sum(filter(None, known)) or None

    def number(self, *names: str) -> float | None:
        """The first of these that the summary has a finite value for."""
        for name in names:
            value = self.summary.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                return value
        return None

    def share_of_teacher(self) -> float | None:
        """The student's accuracy as a share of its teacher's."""
        teacher, student = self.number("teacher_accuracy"), self.student_accuracy
        return student / teacher if teacher and student is not None else None

    def seconds_to(self, share: float) -> float | None:
        """Seconds until the first evaluation at or above this share of the teacher's accuracy.

        Returns:
            Infinity if it was never reached, None if that is not known.
        """
        teacher = self.number("teacher_accuracy")
        if teacher is None or not any(each.seconds is not None for each in self.evaluations):
            return None
        for each in self.evaluations:
            if each.accuracy >= share * teacher:
                return each.seconds
        return math.inf


def is_one_of_ours(config: Any) -> bool:
    """Whether this configuration has what a report reads of one, in the form that it has here."""
    if not isinstance(config, Mapping) or not {"model_name", "seed", "data"} <= config.keys():
        return False
    networks = [config.get(part) or {} for part in ("teacher", "student")]
    nodes = [config["data"], config.get("trainer") or {}, *networks]
    if not all(isinstance(node, Mapping) for node in nodes) or "name" not in config["data"]:
        return False
    architectures = [network.get("architecture") or {} for network in networks]
    return isinstance(config["seed"], int) and all(isinstance(a, Mapping) for a in architectures)


def trained_a_teacher(config: Mapping[str, Any]) -> bool:
    """Whether what the run wrote is the teacher of others."""
    written = (config.get("export") or {}).get("path")
    return written is not None and written == (config.get("teacher") or {}).get("weights")


def evaluations(rows: Iterable[Row]) -> tuple[Evaluation, ...]:
    """Join what was measured with what it had cost, by student updates.

    Args:
        rows: in any order; accuracies and cost are in rows of their own (see `PhaseTimer`).
    """
    measured: dict[int, float] = {}
    seconds: dict[int, float] = {}
    steps: dict[int, float] = {}
    for row in rows:
        found = {key: _number(value) for key, value in row.items()}
        numbers = {key: value for key, value in found.items() if value is not None}
        updates = _updates(numbers)
        accuracy = next((numbers[name] for name in ACCURACIES if name in numbers), None)
        spent = [value for key, value in numbers.items() if key.startswith("time/")]
        if updates is None:
            continue
        if accuracy is not None:
            measured[updates] = accuracy
        if spent:
            seconds[updates] = sum(spent)
        if "synthesis/steps" in numbers:
            steps[updates] = numbers["synthesis/steps"]
    return tuple(
        Evaluation(updates, measured[updates], seconds.get(updates), steps.get(updates))
        for updates in sorted(measured)
    )


def with_teachers(runs: Iterable[Run]) -> list[Run]:
    """Give runs without a teacher the accuracy of the one that others of their kind had."""
    runs = list(runs)
    known = {
        _teacher(run): run.summary["teacher_accuracy"]
        for run in runs
        if run.number("teacher_accuracy") is not None
    }
    return [
        replace(run, summary={**run.summary, "teacher_accuracy": known[_teacher(run)]})
        if "teacher_accuracy" not in run.summary and _teacher(run) in known
        else run
        for run in runs
    ]


def _teacher(run: Run) -> tuple[str, int, str]:
    """The same for runs with the same teacher."""
    weights = (run.config.get("teacher") or {}).get("weights")
    return str(run.config["data"]["name"]), run.seed, str(weights)


def _updates(row: Mapping[str, float]) -> int | None:
    """Student updates so far. Lightning's own rows count the step before them from 0."""
    if "student_updates" in row:
        return int(row["student_updates"])
    step = row.get("step", row.get("trainer/global_step"))
    return None if step is None else int(step) + 1


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):  # an empty cell, a picture
        return None
    return number if math.isfinite(number) else None
