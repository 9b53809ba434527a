"""The file that the run is for: the student, or the teacher that was trained."""

from collections.abc import Sequence
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.errors import InputError
from nayer_pl.export import save_classifier


class Export(Callback):
    """Writes the classifier that was trained (the module's `product`) when training ends.

    Args:
        path: a `.safetensors` file that is not there yet.
        names: of the classes, in the order of the labels.
        image_shape: (C, H, W) of the images it takes.
    """

    def __init__(
        self, path: str | Path | None, names: Sequence[str], image_shape: Sequence[int]
    ) -> None:
        if path is None:
            raise InputError(
                "There is no file to write the trained network to; give it as export.path=PATH "
                "(for a teacher: teacher.weights=PATH)."
            )
        self.path, self.names, self.image_shape = Path(path), list(names), list(image_shape)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to replace trained weights, before the work that would."""
        if stage == "fit" and self.path.exists():
            raise InputError(
                f"'{self.path}' exists and would be replaced; delete it, or write elsewhere with "
                "export.path=PATH (for a teacher: teacher.weights=PATH)."
            )

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        accuracy = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        save_classifier(
            self.path,
            pl_module.product,  # type: ignore[arg-type]
            class_names=self.names,
            image_shape=self.image_shape,
            measured=accuracy,
        )
