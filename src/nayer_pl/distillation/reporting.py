"""What a method tells: numbers to the loggers, and the state of things to the progress bar."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule


class Reporting(LightningModule):
    """Loggers and progress bar, without making a device wait."""

    student_updates = 0

    def record(self, values: Mapping[str, Any]) -> None:
        """To every logger, against student updates: `trainer.global_step` counts more."""
        plain = {name: float(value) for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics(
                {**plain, "student_updates": self.student_updates}, self.student_updates
            )

    def due(self, count: int) -> bool:
        """Whether the `count`-th step of something is one to log."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and count % every == 0  # 0 is Lightning's never

    def show(self, values: Mapping[str, float]) -> None:
        """On the progress bar only; as numbers, for logged tensors are read back at every item."""
        self.trainer.progress_bar_metrics.update({k: float(v) for k, v in values.items()})

    def show_step(self, step: int, steps: int) -> None:
        """Tell the progress bar how far this round is, if it wants to know."""
        show = getattr(self.trainer.progress_bar_callback, "show_step", None)
        if show is not None:
            show(self.trainer, step, steps)
