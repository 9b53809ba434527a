"""`curves.png`: losses and accuracies of the run, from its own CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.runtime.files import write_or_warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, str]

# title, x axis, columns
PANELS: list[tuple[str, str, Sequence[str]]] = [
    (
        "synthesis, loss terms of the kept images",
        "synthesis/round",
        ("synthesis/loss", "synthesis/bn", "synthesis/ce", "synthesis/adv"),
    ),
    ("distillation loss", "student_updates", ("distillation/loss",)),
    (
        "evaluation",
        "student_updates",
        ("val/student_accuracy", "val/agreement", "val/teacher_accuracy"),
    ),
    ("training loss", "step", ("train/loss",)),
    ("evaluation", "step", ("val/accuracy",)),
]


def draw_curves(metrics: str | Path) -> Figure | None:
    """Draw the panels for which the CSV file has values; None if it has none of them."""
    from matplotlib.figure import Figure

    with open(metrics, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {name for row in rows for name, value in row.items() if value}
    panels = [panel for panel in PANELS if found.intersection(panel[2])]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained", dpi=120)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, rows, *panel)
    return figure


def _draw(ax: Axes, rows: Sequence[Row], title: str, x_name: str, columns: Sequence[str]) -> None:
    for column in columns:
        points = [
            (float(row[x_name]), float(row[column]))
            for row in rows
            if row.get(x_name) and row.get(column)
        ]
        if points:
            label = column.partition("/")[2].replace("_", " ")
            style = "--" if column == "val/teacher_accuracy" else "-"
            ax.plot(*zip(*points, strict=True), style, label=label, marker=".", markersize=3)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x_name.rpartition("/")[2].replace("_", " "))
    ax.grid(alpha=0.3)
    if len(ax.lines) > 1:
        ax.legend(fontsize=8)


class Curves(Callback):
    """Draws `curves.png` when training ends.

    Args:
        metrics: The CSV file of Lightning's CSVLogger.
        path: The picture to write.

    Example:
        >>> curves = Curves("run/metrics.csv", "run/curves.png")
    """

    def __init__(self, metrics: str | Path, path: str | Path) -> None:
        self.metrics, self.path = Path(metrics), Path(path)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush the loggers, then draw."""
        for logger in trainer.loggers:
            logger.save()
        if self.metrics.is_file():
            figure = draw_curves(self.metrics)
            if figure is not None:
                content = io.BytesIO()
                figure.savefig(content, format="png")
                write_or_warn(self.path, content.getvalue())
