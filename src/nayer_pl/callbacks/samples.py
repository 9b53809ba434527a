"""A picture of what is in the bank: a labeled row of images for every class."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageDraw, ImageFont

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.bank.datamodule import SyntheticDataModule
from nayer_pl.runtime.files import write_or_warn


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
        bank: at least one image.
        names: of the classes, in the order of the labels.
        per_class: images in a row.
        cell: pixels that an image takes; it is enlarged by a whole factor to fit.
        label: pixels for the name.
        classes: rows; of more classes, that many are drawn, evenly spread over the labels.
    """
    channels, height, width = bank.image_shape
    scale = max(1, cell // max(height, width))
    step_y, step_x = height * scale + 2, width * scale + 2
    count = min(classes, len(names))
    shown = [row * len(names) // count for row in range(count)]
    canvas = Image.new("RGB", (label + per_class * step_x, count * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    newest_first = bank.oldest_first().flip(0)
    labels = bank.labels[newest_first]
    for row, wanted in enumerate(shown):
        name = names[wanted]
        text = name if len(name) < 18 else name[:16] + "…"
        draw.text((6, row * step_y + step_y // 2), text, "black", font, anchor="lm")
        newest = newest_first[labels == wanted][:per_class]
        for column, index in enumerate(newest.tolist()):
            pixels = bank.images[index].permute(1, 2, 0).cpu().numpy()
            pixels = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
            picture = Image.fromarray(pixels).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            canvas.paste(picture, (label + column * step_x, row * step_y + 1))
    return canvas


class SampleGrid(Callback):
    """Sends a grid to Weights & Biases every few epochs, and leaves `samples.png` behind.

    Args:
        path: of the file written at the end.
        names: of the classes, in the order of the labels.
        every_n_epochs: how often a grid is logged.
    """

    def __init__(self, path: str | Path, names: Sequence[str], every_n_epochs: int = 5) -> None:
        self.path, self.names, self.every_n_epochs = Path(path), names, every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a grid to those loggers that show images."""
        shown = any(isinstance(logger, WandbLogger) for logger in trainer.loggers)
        if shown and trainer.current_epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
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
