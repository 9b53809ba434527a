"""When a run is saved: every few minutes, at the end of every epoch, and when it is told to end."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from nayer_pl import ranks
from nayer_pl.errors import InputError, Terminated
from nayer_pl.loggers import restore_rows, rows
from nayer_pl.memory.segments import sync_folder

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
PATIENCE = 15  # seconds that an item may take after SIGTERM; SLURM gives 30 in all


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` and the one before it, `previous.ckpt`; ends the run after SIGTERM.

    A checkpoint is written to a file of another name, which then takes the place of `last.ckpt`: at
    every moment one of the two is whole. The last epoch ends without one, because it is followed by
    the run's results: whoever goes on does that epoch's rest again, and then writes them.

    Args:
        folder: of both files.
        minutes: at most so long between two, as far as rounds and steps are shorter.

    Lightning's own handler of SIGTERM lets the ranks exchange a tensor wherever each of them is
    just then, which may be in the middle of another exchange. Here it only leaves a note.
    """

    def __init__(self, folder: str | Path, minutes: float = 10.0) -> None:
        if minutes < 0:
            raise InputError(f"checkpoint.minutes must not be negative: {minutes}.")
        self.folder, self.seconds = Path(folder), 60 * minutes
        self.told_to_end = False
        self._saved = self._began = 0.0

    # When

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and listen to SIGTERM until the trainer takes its handlers back."""
        self._saved = time.monotonic()
        self.told_to_end = trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_start(self, *_: Any) -> None:
        """See how long an item takes."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two items, but not after the last one: an epoch is not over before its end.

        A slow item is followed by a checkpoint in any case. So it is the only one lost if the next,
        most likely as slow, has to be cut short.
        """
        if batch_idx + 1 == trainer.num_training_batches:
            return
        now = time.monotonic()
        due = now - self._saved >= self.seconds or now - self._began > PATIENCE
        due, end = ranks.any_of([due, self.told_to_end], pl_module.device)
        if due or end:
            self.save(trainer)
        if end:
            raise Terminated

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the run is over."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            return
        self.save(trainer)
        if any(ranks.any_of([self.told_to_end], pl_module.device)):
            raise Terminated

    # SIGTERM

    def _note(self, *_: Any) -> None:
        self.told_to_end = True
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, self._cut_short)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _cut_short(self, *_: Any) -> None:
        raise Terminated

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The trainer is done: nothing is left to be cut short."""
        self._stop_waiting()

    on_exception = teardown  # type: ignore[assignment]

    def _stop_waiting(self) -> None:
        if self.told_to_end and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    # How

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`; to be called on all ranks."""
        self._stop_waiting()
        unfinished = self.folder / f"{LAST}.part"
        trainer.save_checkpoint(unfinished, weights_only=False)
        if trainer.is_global_zero:
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            if (self.folder / LAST).exists():
                os.replace(self.folder / LAST, self.folder / PREVIOUS)
            os.replace(unfinished, self.folder / LAST)
            sync_folder(self.folder)
        self._saved = time.monotonic()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the rows of `metrics.csv` along: what comes after them will be made again."""
        files = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        checkpoint["rows"] = rows(files[0]) if files and trainer.is_global_zero else ""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put them back."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                restore_rows(logger, checkpoint.get("rows", ""))
