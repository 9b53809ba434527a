"""`report.md`: the tables, for a README or an issue."""

from collections.abc import Sequence

from nayer_pl.report.columns import COST, NOTES, QUALITY, Column
from nayer_pl.report.groups import Section, gaps
from nayer_pl.report.run import LeftOut


def markdown(
    title: str, sections: Sequence[Section], left_out: Sequence[LeftOut], picture: str
) -> str:
    """The tables of every section, what is not in them, and the picture beside the file."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        seeds = [", ".join(map(str, method.seeds)) for method in section.methods]
        parts += [_table(section, QUALITY, {"seeds": seeds}), _table(section, COST, {})]
        uneven, machines = gaps(section), section.said_by_all("machine")
        if uneven:
            parts.append(f"Not the same seeds for all: {'; '.join(uneven)}.")
        if machines:
            parts.append(f"Measured on: {'; '.join(machines)}.")
    if left_out:
        lines = [f"- `{each.name}`: {each.why}" for each in left_out]
        parts.append("\n".join(["Not in the tables:", "", *lines]))
    parts += [*NOTES, f"![Accuracy against its cost]({picture})"]
    return "\n\n".join(parts) + "\n"


def _table(section: Section, columns: Sequence[Column], more: dict[str, list[str]]) -> str:
    head = ["method", *(column.title for column in columns), *more]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for i, method in enumerate(section.methods):
        extra = [cells[i] for cells in more.values()]
        cells = [column.text(method.runs) for column in columns]
        lines.append([method.name.replace("|", "\\|"), *cells, *extra])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
