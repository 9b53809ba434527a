"""What a run ends with: `summary.json` and one table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nayer_pl.runtime.files import write_durably


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Flat JSON; fractions in [0, 1], seconds, counts.

    Raises:
        OSError: it cannot be written; there is none then, for one says that the run is over.
    """
    write_durably(path, (json.dumps(summary, indent=2) + "\n").encode())


def print_summary(
    summary: Mapping[str, Any], files: Mapping[str, str], console: Console | None = None
) -> None:
    """Print one table: results, sizes, time per phase, and where the files are."""
    table = Table(title="Summary", title_justify="left", show_header=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in [*_rows(summary), *files.items()]:
        table.add_row(name, Text(text))
    (console or Console()).print(table)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (name.replace("_", " "), _percent(summary[name]))
        for name in ("teacher_accuracy", "student_accuracy", "agreement", "accuracy")
        if name in summary
    ]
    if "student_parameters" in summary:
        teacher, student = summary["teacher_parameters"], summary["student_parameters"]
        sizes = f"teacher {_count(teacher)}, student {_count(student)}"
        ratio = f"{teacher / student:.2f}x smaller"
        if teacher <= student:
            ratio = "the same" if teacher == student else f"{student / teacher:.2f}x larger"
        rows.append(("parameters", f"{sizes}, {ratio}"))
    elif "parameters" in summary:
        rows.append(("parameters", _count(summary["parameters"])))
    if "images_banked" in summary:
        made, kept = summary["images_banked"], summary["images_kept"]
        banked = f"{made:,}" if made == kept else f"{made:,}, of which {kept:,} are kept"
        banked += f" ({_size(summary['bank_bytes'])})"
        if summary["label_agreement"] is not None:
            seen = _percent(summary["label_agreement"])
            banked += f"; the teacher sees the wanted label in {seen}"
        rows.append(("images banked", banked))
    for phase in ("teacher", "synthesis", "distillation", "training"):
        seconds = summary.get(f"seconds_{phase}")
        if seconds:
            speed = summary.get(f"images_per_second_{phase}")
            per_second = f", {speed:,.0f} images/s" if speed else ""
            rows.append((f"time, {phase}", f"{seconds:.1f} s{per_second}"))
    return rows


def _percent(value: float | None) -> str:
    return "not measured (no real images)" if value is None else f"{100 * value:.2f} %"


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 100_000 else f"{value:,}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
