"""Seconds and images per second of each phase."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from nayer_pl.bank.plan import DistillationBatch, SynthesisRound
from nayer_pl.runtime import distributed


class PhaseTimer(Callback):
    """Adds up the seconds of synthesis and distillation, fetching their work items included.

    The device is synchronized only where the phase changes: that separates the phases and slows
    nothing inside one. After every evaluation the seconds so far (`time/<phase>`) and the steps of
    synthesis (`synthesis/steps`, of all ranks) are logged over student updates, which tells what an
    accuracy cost.

    Example:
        >>> timer = PhaseTimer()
        >>> timer.figures()  # before any work
        {}
    """

    def __init__(self) -> None:
        self.seconds = {"synthesis": 0.0, "distillation": 0.0, "training": 0.0}
        self.images = {"synthesis": 0, "distillation": 0, "training": 0}
        self._phase: str | None = None
        self._since = 0.0

    def figures(self) -> dict[str, float]:
        """Seconds and images per second of the phases that took place, for the summary."""
        figures = {}
        for phase, seconds in self.seconds.items():
            if seconds:
                figures[f"seconds_{phase}"] = seconds
                figures[f"images_per_second_{phase}"] = self.images[phase] / seconds
        return figures

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the counts of all ranks; called on all of them."""
        self._stop(pl_module)
        images = {
            phase: distributed.all_reduce_sum(n, pl_module.device)
            for phase, n in self.images.items()
        }
        checkpoint["phases"] = {"seconds": dict(self.seconds), "images": images}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the counts."""
        saved = checkpoint.get("phases")
        if saved is None:  # saved without this callback
            return
        self.seconds = dict(saved["seconds"])
        if trainer.is_global_zero:  # in the end the ranks are added up
            self.images = {phase: int(count) for phase, count in saved["images"].items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also where a run is resumed in the middle of an epoch."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._phase, self._since = None, time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of this item, and stop the clock of the phase before if it changes."""
        if isinstance(batch, SynthesisRound):
            phase, images = "synthesis", len(batch.targets)
        elif isinstance(batch, DistillationBatch):
            phase, images = "distillation", len(batch.labels)
        else:
            phase, images = "training", len(batch[1])
        if phase != self._phase:
            self._stop(pl_module)
            self._phase = phase
        self.images[phase] += images

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the images of all ranks, which were made and used in the same seconds."""
        for phase, images in self.images.items():
            self.images[phase] = int(distributed.all_reduce_sum(images, pl_module.device))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation is not part of any phase."""
        self._stop(pl_module)
        self._phase = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds so far, and start the clock again."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module)
        self._since = time.perf_counter()

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        updates = getattr(pl_module, "student_updates", trainer.global_step)
        spent = {f"time/{phase}": seconds for phase, seconds in self.seconds.items() if seconds}
        if hasattr(pl_module, "synthesis_steps"):
            steps: int = pl_module.synthesis_steps  # type: ignore[assignment]
            spent["synthesis/steps"] = distributed.all_reduce_sum(steps, pl_module.device)
        for logger in trainer.loggers:
            logger.log_metrics({**spent, "student_updates": updates}, updates)

    def _stop(self, pl_module: LightningModule) -> None:
        if self._phase is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            now = time.perf_counter()
            self.seconds[self._phase] += now - self._since
            self._since = now
