"""A progress bar that says which phase is running."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from nayer_pl.memory.plan import SynthesisRound


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's bar, one line per epoch, named after the phase: synthesis or distillation."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate, leave=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Name the phase of this work item."""
        if isinstance(batch, SynthesisRound):
            phase = "warm-up" if batch.warm_up else "synthesis"
        else:
            phase = "distillation" if hasattr(pl_module, "student") else "training"
        width = len(str(trainer.max_epochs))
        epoch = f"{trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(f"Epoch {epoch} {phase:<12}", refresh=False)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """The losses that matter, without the version number of the logger."""
        metrics = super().get_metrics(*args)
        metrics.pop("v_num", None)
        return {
            name: f"{value:.3f}" if isinstance(value, float) else value
            for name, value in metrics.items()
        }
