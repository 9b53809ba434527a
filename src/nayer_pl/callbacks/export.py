"""Writes the result of a run: the student, or the teacher that was trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from nayer_pl.errors import InputError
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.pretrained import save_classifier
from nayer_pl.networks.weights import fingerprint, read_weights
from nayer_pl.runtime import distributed
from nayer_pl.runtime.files import cannot_write, check_folder, write_or_warn
from nayer_pl.runtime.options import OptionError


class Export(Callback):
    """Writes the classifier that was trained (the module's `exported_classifier`) at the end.

    Args:
        path: A `.safetensors` file that does not exist yet.
        names: Names of the classes, in the order of the labels.
        image_shape: Shape (C, H, W) of the images that it takes.
        record: A file for the fingerprint of the weights in `path`: a run that is killed after it
            wrote them, but before its end, may replace them after a resume. None replaces nothing.

    Example:
        >>> export = Export("run/student.safetensors", ["cat", "dog"], image_shape=(3, 32, 32))
    """

    def __init__(
        self,
        path: str | Path | None,
        names: Sequence[str],
        image_shape: Sequence[int],
        record: str | Path | None = None,
    ) -> None:
        if path is None:
            raise InputError("There is no file to write the network to; give it as path=PATH.")
        if Path(path).suffix != ".safetensors":
            raise OptionError("path", "a .safetensors file", path)
        self.path, self.names, self.image_shape = Path(path), list(names), list(image_shape)
        self.record = None if record is None else Path(record)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before the work that the file can be written after it.

        Raises:
            InputError: It is there and not of this run, or its folder cannot be written.
        """
        if stage == "fit":
            error = distributed.first_error(self.obstacle() if trainer.is_global_zero else None)
            if error is not None:
                raise InputError(error)

    def obstacle(self) -> str | None:
        """Why the file cannot be written, and what to do; None if it can be."""
        elsewhere = "or write elsewhere with path=PATH."
        if self.path.exists() and not self._is_own():
            return f"'{self.path}' exists and would be replaced; delete it, {elsewhere}"
        try:
            check_folder(self.path.parent)
        except OSError as error:
            return f"{cannot_write(error)}; mend that, {elsewhere}"
        return None

    def _is_own(self) -> bool:
        if self.record is None or not self.record.exists():
            return False
        try:
            return self.record.read_text() == fingerprint(read_weights(self.path)[0])
        except (InputError, UnicodeDecodeError):
            return False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; where it cannot be, one of that name in the run's directory.

        Raises:
            InputError: The file cannot be written; the message says where the weights are instead.
        """
        error = self._write(trainer, pl_module) if trainer.is_global_zero else None
        error = distributed.first_error(error)
        if error is not None:
            raise InputError(error)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        product: Classifier = pl_module.exported_classifier  # type: ignore[assignment]
        metrics = trainer.callback_metrics.items()
        facts = {
            "class_names": self.names,
            "image_shape": self.image_shape,
            "measured": {name: float(v) for name, v in metrics if name.startswith("val/")},
        }
        if self.record is not None:
            write_or_warn(self.record, fingerprint(product.network).encode())
        error = _save(self.path, product, facts)
        if error is None:
            return None
        instead = Path(trainer.default_root_dir) / self.path.name
        if not instead.exists() and _save(instead, product, facts) is None:
            return f"{error}. What was trained is in '{instead}' instead: move it there."
        return (
            f"{error}. Make room, and resume from the last checkpoint: what came after it is then "
            "repeated, and the file is written."
        )


def _save(path: Path, product: Classifier, facts: Mapping[str, Any]) -> str | None:
    """Write the file, or return why it cannot be written."""
    try:
        save_classifier(path, product, **facts)
    except Exception as error:  # the network may be a user's own
        return f"'{path}' cannot be written ({getattr(error, 'strerror', None) or error})"
    return None
