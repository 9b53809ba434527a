"""Progress of a run: a bar in a terminal, a line per epoch or minute in a log file."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from nayer_pl.bank.plan import SynthesisRound

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
