"""A progress bar that says which phase is running."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from nayer_pl.memory.plan import SynthesisRound


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's bar, one line per epoch, named after the phase: synthesis or distillation."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate, leave=True)
        self._phase, self._drawn = "", 0.0

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """A line of its own for every epoch."""
        bar = self.train_progress_bar
        if not bar.disable:  # the empty one that Lightning opens before the first epoch
            bar.leave = False
            bar.close()
        super().on_train_epoch_start(trainer, *args)
        self._describe(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Name the phase of this work item."""
        if not self.train_progress_bar.total:  # a run that goes on in the middle of an epoch
            self.on_train_epoch_start(trainer)
        if isinstance(batch, SynthesisRound):
            self._phase = "warm-up" if batch.warm_up else "synthesis"
        else:
            self._phase = "distillation" if hasattr(pl_module, "student") else "training"
        self._describe(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """The round is over: no step of it is going on."""
        self._describe(trainer)
        super().on_train_batch_end(trainer, *args)

    def show_step(self, trainer: Trainer, step: int, steps: int) -> None:
        """Say how far a synthesis round is: it may take a minute, and the bar counts rounds."""
        now = time.monotonic()
        # In a log file every refresh would be a line.
        if now - self._drawn > 0.5 and sys.stdout.isatty():
            self._drawn = now
            self._describe(trainer, f"step {step}/{steps}")
            self.train_progress_bar.refresh()

    def _describe(self, trainer: Trainer, detail: str = "") -> None:
        width = len(str(trainer.max_epochs))
        epoch = f"{trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}"
        text = f"Epoch {epoch} {self._phase} {detail}"
        self.train_progress_bar.set_description(f"{text:<{width * 2 + 22}}", refresh=False)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """The losses that matter, without the version number of the logger."""
        metrics = super().get_metrics(*args)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.3g}" if isinstance(value, float) else value
            for name, value in metrics.items()
        }
