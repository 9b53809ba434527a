"""How far a run is, and how long each of its phases takes."""

import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from nayer_pl.bank.plan import DistillationBatch, SynthesisRound
from nayer_pl.runtime import distributed

MINUTE = 60.0


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's bar, one line per epoch, named after the phase: synthesis or distillation.

    In a log file, where nothing can be redrawn, it is a line for every epoch, and for every minute
    of a longer one.

    Args:
        refresh_rate: Work items between two updates of the bar.
        terminal: Whether lines can be redrawn; None to ask standard output.

    Example:
        >>> bar = PhaseProgressBar(refresh_rate=10, terminal=True)
    """

    # A narrow terminal cuts the end off, so what matters most comes first.
    BAR_FORMAT = (
        "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}, {rate_noinv_fmt}]"
    )
    FIRST = ("acc", "accuracy", "agree")

    def __init__(self, refresh_rate: int = 1, terminal: bool | None = None) -> None:
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        super().__init__(refresh_rate if self._terminal else 0, leave=True)
        self._phase, self._drawn, self._since = "", 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin a new line."""
        self._since = self._drawn = time.monotonic()
        bar = self.train_progress_bar
        if not bar.disable:  # the empty one that Lightning opens before the first epoch
            bar.leave = False
            bar.close()
        super().on_train_epoch_start(trainer, *args)
        self._describe(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the phase of this work item."""
        if not self.train_progress_bar.total:  # resumed in the middle of an epoch
            self.on_train_epoch_start(trainer)
        if isinstance(batch, SynthesisRound):
            self._phase = "warm-up" if batch.warm_up else "synthesis"
        else:
            self._phase = "distillation" if hasattr(pl_module, "student") else "training"
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or print a line if a minute is over."""
        self._describe(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._drawn > MINUTE:
            self._drawn = time.monotonic()
            share = f"{batch_idx + 1}/{self.total_train_batches}"
            self._print_line(trainer, pl_module, f"{self._phase} {share}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar, or print the line of this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        seconds = time.monotonic() - self._since
        self._print_line(trainer, pl_module, f"done in {seconds:.0f} s")

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        """Close the bars, so that the error begins on a new line."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def show_step(self, trainer: Trainer, step: int, steps: int) -> None:
        """Show the step inside a synthesis round, which may take a minute."""
        now = time.monotonic()
        if self._terminal and now - self._drawn > 0.5:
            self._drawn = now
            self._describe(trainer, f"step {step}/{steps}")
            self.train_progress_bar.refresh()

    def _describe(self, trainer: Trainer, detail: str = "") -> None:
        text = f"{self._epoch(trainer)} {self._phase} {detail}".rstrip()
        width = len(self._epoch(trainer) + " distillation")
        self.train_progress_bar.set_description_str(f"{text:<{width}}", refresh=False)

    def _epoch(self, trainer: Trainer) -> str:
        width = len(str(trainer.max_epochs))
        return f"Epoch {trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}"

    def _print_line(self, trainer: Trainer, pl_module: LightningModule, text: str) -> None:
        if self._terminal or not trainer.is_global_zero:
            return
        metrics = self.get_metrics(trainer, pl_module).items()
        values = ", ".join(f"{name}={value}" for name, value in metrics)
        print(f"{self._epoch(trainer)} {text}{': ' if values else ''}{values}", flush=True)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """The metrics of the bar, accuracies first, without the version number of the logger."""
        metrics = {
            name.rpartition("/")[2]: f"{value:.3g}" if isinstance(value, float) else value
            for name, value in super().get_metrics(*args).items()
            if name != "v_num"
        }
        return {name: metrics[name] for name in self.FIRST if name in metrics} | metrics


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
        self.seconds = dict.fromkeys(("synthesis", "distillation", "training"), 0.0)
        self.images = dict.fromkeys(self.seconds, 0)
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

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Continue the counts."""
        saved = checkpoint.get("phases")
        if saved is None:  # saved without this callback
            return
        self.seconds = dict(saved["seconds"])
        if trainer.is_global_zero:  # in the end the ranks are added up
            self.images = {phase: int(count) for phase, count in saved["images"].items()}

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, also where a run is resumed in the middle of an epoch."""
        self._phase, self._since = None, time.perf_counter()

    on_train_epoch_start = on_train_start  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
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
