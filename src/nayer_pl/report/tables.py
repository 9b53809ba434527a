"""Tables: a number of each run, over the seeds of a method, for people and as JSON."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nayer_pl.report.groups import Section
from nayer_pl.report.runs import LeftOut, Run


@dataclass(frozen=True)
class Column:
    """A column of the tables: a number of each run, and its mean over seeds.

    Args:
        key: its name in `report.json`.
        title: its name in the tables.
        of: the number; infinity if what is timed never happened, None if it is not known.
        scale: factor in the tables.
        digits: after the point.
        small: digits after the point of numbers below ten, if more.

    Example:
        >>> column = Column("s", "seconds", lambda run: run.number("s"))
        >>> column.text([Run("a", {}, {"s": 10}), Run("b", {}, {"s": 20})])
        '15 ± 7'
    """

    key: str
    title: str
    of: Callable[[Run], float | None]
    scale: float = 1.0
    digits: int = 0
    small: int = 0

    def figures(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Mean, sample standard deviation and single values, neither scaled nor rounded."""
        values = [self.of(run) for run in runs]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        return {
            "mean": statistics.fmean(finite) if finite else None,
            "std": statistics.stdev(finite) if len(finite) > 1 else None,
            "values": ["not reached" if value == math.inf else value for value in values],
        }

    def text(self, runs: Sequence[Run]) -> str:
        """The cell of a method with these runs."""
        mean, std, values = self.figures(runs).values()
        known = len(values) - values.count(None)
        reached = known - values.count("not reached")
        if not reached:
            return "not reached" if known else "\N{EN DASH}"
        digits = self.digits if mean * self.scale >= 10 else max(self.digits, self.small)
        text = f"{mean * self.scale:,.{digits}f}"
        if std is not None and (digits or std):
            text += f" ± {std * self.scale:,.{digits}f}"
        return text if reached == known else f"{text} ({reached} of {known})"


def _number(key: str, title: str, *names: str, **how: Any) -> Column:
    """An entry of the summary: `key`, or the first of `names` that is there."""
    return Column(key, title, lambda run: run.number(*names or [key]), **how)


def _time_to(share: int) -> Column:
    key, title = f"seconds_to_{share}", f"s to {share} % of teacher"
    return Column(key, title, lambda run: run.seconds_to(share / 100), small=1)


STUDENT_SECONDS = ("seconds_distillation", "seconds_training")
TABLES = {
    "Accuracy": (
        Column("student_accuracy", "student, %", Run.accuracy, 100, 1),
        Column("share_of_teacher", "of teacher, %", Run.share_of_teacher, 100, 1),
        _number("agreement", "agreement, %", scale=100, digits=1),
        *map(_time_to, (90, 95, 99)),
        _number("teacher_accuracy", "teacher, %", scale=100, digits=1),
    ),
    "Cost": (
        _number("seconds_synthesis", "synthesis, s", small=1),
        _number("seconds_student", "student, s", *STUDENT_SECONDS, small=1),
        Column("seconds", "both, s", Run.seconds, small=1),
        _number("synthesis_steps", "synthesis steps"),
        Column("student_updates", "student updates", Run.updates),
        _number("images_banked", "images banked"),
        _number("images_kept", "images kept"),
    ),
}
NOTES = (
    "Mean ± sample standard deviation over seeds, after the last epoch. The teacher's column and "
    "“of teacher” refer to the teacher of each run.",
    "“s to 90 % of teacher” is the time of synthesis and distillation until the first evaluation "
    "at or above 90 % of the teacher's accuracy, over the runs that reached it. Evaluation and the "
    "teacher's training are not counted.",
    "Methods whose generator and student take turns bank the images of the generator's steps only, "
    "and keep those of the last turn, for pictures.",
)


def table(section: Section, columns: Sequence[Column]) -> list[list[str]]:
    """The titles of these columns, then the cells of each method, from its name to its seeds."""
    rows = [["method", *(column.title for column in columns), "seeds"]]
    for method in section.methods:
        cells = [column.text(method.runs) for column in columns]
        rows.append([method.name, *cells, ", ".join(map(str, method.seeds))])
    return rows


def markdown(title: str, sections: Sequence[Section], left_out: Sequence[LeftOut]) -> str:
    """`report.md`: the tables for a README or an issue, and a link to `report.png`."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for columns in TABLES.values():
            head, *rows = table(section, columns)
            rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if gaps := section.gaps():
            parts.append(f"Not the same seeds for all: {'; '.join(gaps)}.")
        if machines := section.texts("machine"):
            parts.append(f"Measured on: {machines}.")
    if left_out:
        names = [f"- `{name}`: {why}" for name, why in left_out]
        parts.append("\n".join(["Not in the tables:", "", *names]))
    return "\n\n".join([*parts, *NOTES, "![Accuracy against its cost](report.png)"]) + "\n"
