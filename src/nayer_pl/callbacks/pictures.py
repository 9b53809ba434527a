"""The pictures that a run leaves: images of its bank by class, and the curves of its metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pydantic import PositiveInt

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.runtime.files import write_or_warn
from nayer_pl.runtime.options import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


def sample_grid(
    bank: MemoryBank,
    names: Sequence[str],
    per_class: int = 12,
    cell: int = 48,
    label: int = 130,
    classes: int = 20,
) -> Image.Image:
    """Draw up to `per_class` images of each class, the newest first, beside its name.

    Args:
        bank: The bank, with at least one image.
        names: Names of the classes, in the order of the labels.
        per_class: Images in a row.
        cell: Pixels of an image's side; it is enlarged by a whole factor to fit.
        label: Pixels for the name.
        classes: Rows; of more classes, this many are drawn, evenly spread over the labels.
    """
    from PIL import Image, ImageDraw, ImageFont

    channels, height, width = bank.image_shape
    scale = max(1, cell // max(height, width))
    step_y, step_x = height * scale + 2, width * scale + 2
    count = min(classes, len(names))
    shown = [row * len(names) // count for row in range(count)]
    canvas = Image.new("RGB", (label + per_class * step_x, count * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    newest_first = bank.oldest_first().flip(0)
    labels = bank.labels[newest_first]
    for row, target in enumerate(shown):
        name = names[target]
        text = name if len(name) < 18 else name[:16] + "…"
        draw.text((6, row * step_y + step_y // 2), text, "black", font, anchor="lm")
        newest = newest_first[labels == target][:per_class]
        for column, index in enumerate(newest.tolist()):
            pixels = bank.images[index].permute(1, 2, 0).cpu().numpy()
            pixels = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
            picture = Image.fromarray(pixels).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            canvas.paste(picture, (label + column * step_x, row * step_y + 1))
    return canvas


class SampleGrid(Callback):
    """Logs a grid to Weights & Biases every few epochs, and writes `samples.png` at the end.

    Args:
        path: The picture to write.
        names: Names of the classes, in the order of the labels.
        every_n_epochs: Epochs between two grids.

    Example:
        >>> samples = SampleGrid("run/samples.png", ["cat", "dog"], every_n_epochs=10)
    """

    @checked
    def __init__(
        self, path: str | Path, names: Sequence[str], every_n_epochs: PositiveInt = 5
    ) -> None:
        self.path, self.names, self.every_n_epochs = Path(path), names, every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a grid to the loggers that show images."""
        shown = any(isinstance(logger, WandbLogger) for logger in trainer.loggers)
        if shown and trainer.current_epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture."""
        grid = self._log(trainer, pl_module)
        if grid is not None:
            content = io.BytesIO()
            grid.save(content, "png")
            write_or_warn(self.path, content.getvalue())

    @rank_zero_only
    def _log(self, trainer: Trainer, pl_module: LightningModule) -> Image.Image | None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SyntheticDataModule) or not len(data.bank):
            return None
        grid = sample_grid(data.bank, self.names)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(
                    "bank/samples", [grid], getattr(pl_module, "student_updates", None)
                )
        return grid


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
    for ax, (title, x_name, columns) in zip(axes, panels, strict=True):
        for column in columns:
            pairs = [(row.get(x_name), row.get(column)) for row in rows]
            points = [(float(x), float(y)) for x, y in pairs if x and y]
            if points:
                label = column.partition("/")[2].replace("_", " ")
                style = "--" if column == "val/teacher_accuracy" else "-"
                ax.plot(*zip(*points, strict=True), style, label=label, marker=".", markersize=3)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(x_name.rpartition("/")[2].replace("_", " "))
        ax.grid(alpha=0.3)
        if len(ax.lines) > 1:
            ax.legend(fontsize=8)
    return figure


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
    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Flush the loggers, then draw."""
        for logger in trainer.loggers:
            logger.save()
        figure = draw_curves(self.metrics) if self.metrics.is_file() else None
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png")
            write_or_warn(self.path, content.getvalue())
