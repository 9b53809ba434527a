"""Tables: the numbers of runs, over the seeds of a method, for people and as JSON."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from nayer_pl.report.groups import Section
from nayer_pl.report.runs import LeftOut, Run


class Style(NamedTuple):
    """A factor, the digits after the point, and those of numbers below ten."""

    factor: int
    digits: int
    small: int


PERCENT, SECONDS, COUNT = Style(100, 1, 1), Style(1, 0, 1), Style(1, 0, 0)
TABLES = {  # the names of columns in `report.json`, and their titles in the tables
    "Accuracy": {
        "student_accuracy": ("student, %", PERCENT),
        "share_of_teacher": ("of teacher, %", PERCENT),
        "agreement": ("agreement, %", PERCENT),
        "seconds_to_90": ("s to 90 % of teacher", SECONDS),
        "seconds_to_95": ("s to 95 % of teacher", SECONDS),
        "seconds_to_99": ("s to 99 % of teacher", SECONDS),
        "teacher_accuracy": ("teacher, %", PERCENT),
    },
    "Cost": {
        "seconds_synthesis": ("synthesis, s", SECONDS),
        "seconds_student": ("student, s", SECONDS),
        "seconds": ("both, s", SECONDS),
        "synthesis_steps": ("synthesis steps", COUNT),
        "student_updates": ("student updates", COUNT),
        "images_banked": ("images banked", COUNT),
        "images_kept": ("images kept", COUNT),
    },
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


def figures(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Every number in the tables, over the seeds of a method."""
    keys = chain(*TABLES.values())
    return {key: over_seeds([run.numbers.get(key) for run in runs]) for key in keys}


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation and single values, neither scaled nor rounded."""
    finite = [value for value in values if value is not None and value < math.inf]
    return {
        "mean": statistics.fmean(finite) if finite else None,
        "std": statistics.stdev(finite) if len(finite) > 1 else None,
        "values": ["not reached" if value == math.inf else value for value in values],
    }


def cell(found: Mapping[str, Any], style: Style) -> str:
    """Such a number as it is shown."""
    mean, std, values = found.values()
    known = len(values) - values.count(None)
    reached = known - values.count("not reached")
    if not reached:
        return "not reached" if known else "\N{EN DASH}"
    digits = style.digits if mean * style.factor >= 10 else style.small
    text = f"{mean * style.factor:,.{digits}f}"
    if std is not None and (digits or std):
        text += f" ± {std * style.factor:,.{digits}f}"
    return text if reached == known else f"{text} ({reached} of {known})"


def table(section: Section, name: str) -> list[list[str]]:
    """The titles of a table, then the cells of each method, from its name to its seeds."""
    columns = TABLES[name]
    rows = [["method", *(title for title, _ in columns.values()), "seeds"]]
    for method in section.methods:
        numbers = figures(method.runs)
        cells = [cell(numbers[key], style) for key, (_, style) in columns.items()]
        rows.append([method.name, *cells, ", ".join(map(str, method.seeds))])
    return rows


def markdown(title: str, sections: Sequence[Section], left_out: Sequence[LeftOut]) -> str:
    """`report.md`: the tables for a README or an issue, and a link to `report.png`."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for name in TABLES:
            head, *rows = table(section, name)
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
