"""How far a run is: a bar in a terminal, a line now and then in a log file."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from nayer_pl.bank.plan import SynthesisRound

MINUTE = 60.0


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's bar, one line per epoch, named after the phase: synthesis or distillation.

    A log file cannot be drawn over: there it is a line for every epoch, and for every minute of a
    longer one.

    Args:
        refresh_rate: work items between two looks of the bar.
        terminal: whether lines can be drawn over; None for whatever standard output is.
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
        """A line of its own for every epoch."""
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
        """Name the phase of this work item."""
        if not self.train_progress_bar.total:  # a run that goes on in the middle of an epoch
            self.on_train_epoch_start(trainer)
        if isinstance(batch, SynthesisRound):
            self._phase = "warm-up" if batch.warm_up else "synthesis"
        else:
            self._phase = "distillation" if hasattr(pl_module, "student") else "training"
        self._describe(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The round is over: no step of it is going on."""
        self._describe(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._drawn > MINUTE:
            self._drawn = time.monotonic()
            share = f"{batch_idx + 1}/{self.total_train_batches}"
            self._print_line(trainer, pl_module, f"{self._phase} {share}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; or say what there is to say of this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        seconds = time.monotonic() - self._since
        self._print_line(trainer, pl_module, f"done in {seconds:.0f} s")

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        """Leave the line to whoever says what happened."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def show_step(self, trainer: Trainer, step: int, steps: int) -> None:
        """Say how far a synthesis round is: it may take a minute, and the bar counts rounds."""
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

    def _print_line(self, trainer: Trainer, pl_module: LightningModule, what: str) -> None:
        if self._terminal or not trainer.is_global_zero:
            return
        found = self.get_metrics(trainer, pl_module).items()
        values = ", ".join(f"{name}={value}" for name, value in found)
        print(f"{self._epoch(trainer)} {what}{': ' if values else ''}{values}", flush=True)

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """The numbers that matter, accuracies first; without the version number of the logger."""
        metrics = {
            name.rpartition("/")[2]: f"{value:.3g}" if isinstance(value, float) else value
            for name, value in super().get_metrics(*args).items()
            if name != "v_num"
        }
        return {name: metrics[name] for name in self.FIRST if name in metrics} | metrics
