"""What the tables say about a method: each column a number of a run, over its seeds."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nayer_pl.report.run import Run

SHARES = (0.90, 0.95, 0.99)
UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Spread:
    """Values over seeds: mean and sample standard deviation of those that are known and finite.

    `never` counts the runs in which what is timed did not happen.
    """

    mean: float | None
    deviation: float | None
    count: int
    never: int = 0


@dataclass(frozen=True)
class Column:
    """A number of a run: what it is called, how it is scaled and rounded.

    `small` is how many digits it has below ten, where a whole number would say too little.
    """

    key: str
    title: str
    of: Callable[[Run], float | None]
    scale: float = 1.0
    digits: int = 0
    small: int = 0

    def spread(self, runs: Sequence[Run]) -> Spread:
        """Over these runs, not scaled."""
        known = [value for value in map(self.of, runs) if value is not None]
        values = [value for value in known if math.isfinite(value)]
        return Spread(
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            len(values),
            len(known) - len(values),
        )

    def text(self, runs: Sequence[Run]) -> str:
        """As it stands in a cell."""
        spread = self.spread(runs)
        if spread.mean is None:
            return "not reached" if spread.never else UNKNOWN
        digits = self.digits if spread.mean * self.scale >= 10 else max(self.digits, self.small)
        text = f"{spread.mean * self.scale:,.{digits}f}"
        if spread.deviation is not None and (digits or spread.deviation):
            text += f" ± {spread.deviation * self.scale:,.{digits}f}"
        if spread.never:
            text += f" ({spread.count} of {spread.count + spread.never})"
        return text


def _time_to(share: float) -> Column:
    return Column(
        f"seconds_to_{100 * share:.0f}",
        f"s to {100 * share:.0f} % of teacher",
        lambda run: run.seconds_to(share),
        small=1,
    )


def _plain(key: str, title: str, scale: float = 1.0, digits: int = 0, small: int = 0) -> Column:
    return Column(key, title, lambda run: run.number(key), scale, digits, small)


QUALITY = (
    Column("student_accuracy", "student, %", lambda run: run.student_accuracy, 100, 1),
    Column("share_of_teacher", "of teacher, %", lambda run: run.share_of_teacher(), 100, 1),
    _plain("agreement", "agreement, %", 100, 1),
    *map(_time_to, SHARES),
    _plain("teacher_accuracy", "teacher, %", 100, 1),
)
COST = (
    _plain("seconds_synthesis", "synthesis, s", small=1),
    Column(
        "seconds_student",
        "student, s",
        lambda run: run.number("seconds_distillation", "seconds_training"),
        small=1,
    ),
    Column("seconds", "both, s", lambda run: run.seconds, small=1),
    _plain("synthesis_steps", "synthesis steps"),
    Column("student_updates", "student updates", lambda run: run.student_updates),
    _plain("images_banked", "images banked"),
    _plain("images_kept", "images kept"),
)
NOTES = (
    "Mean ± sample standard deviation over seeds, after the last epoch. The teacher's column and "
    "“of teacher” are of the teacher that each run had.",
    "“s to 90 % of teacher” is the time of synthesis and distillation until the first evaluation "
    "at or above 90 % of the teacher's accuracy, of the runs that got there. Evaluation and the "
    "teacher's training are not counted.",
    "Methods whose generator and student take turns bank the images of the generator's steps only, "
    "and keep those of the last turn, for pictures.",
)


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """All columns of these runs, for a machine."""
    found = {}
    for column in (*QUALITY, *COST):
        spread = column.spread(runs)
        values = [column.of(run) for run in runs]
        found[column.key] = {
            "mean": spread.mean,
            "std": spread.deviation,
            "values": [v if v is None or math.isfinite(v) else "not reached" for v in values],
        }
    return found
