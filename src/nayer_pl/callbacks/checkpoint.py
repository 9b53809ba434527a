"""When a run is saved: every few minutes, at the end of every epoch, and when it is told to end."""

import io
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pydantic import NonNegativeFloat

from nayer_pl.callbacks.loggers import MetricsFile, restore_rows, rows
from nayer_pl.runtime import distributed
from nayer_pl.runtime.files import cannot_write, sync_folder, write_durably
from nayer_pl.runtime.options import checked

log = logging.getLogger(__name__)

LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
SIGTERM_GRACE_S = 15  # for the round or step that SIGTERM interrupts; SLURM gives 30 in all


class TrainingEnded(SystemExit):
    """Training was told to end early, and its state is saved; a script that lets it pass ends too.

    Args:
        reason: "SIGTERM" or "max_time".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"Training was ended by {reason}; its last checkpoint can be resumed.")
        self.reason = reason


class Checkpoints(Checkpoint):
    """Saves `last.ckpt`, also when training is told to end, and keeps the one before it.

    Lightning's ModelCheckpoint ignores its time interval in manual optimization, and its handler of
    SIGTERM lets the ranks exchange a tensor wherever each of them is, which may be in the middle of
    another exchange. Here the handler only sets a flag. Between two work items all ranks look at
    it, and at the Trainer's `max_time`; then they save and raise `TrainingEnded`.

    A checkpoint is written to a file of another name, which then replaces `last.ckpt`: at every
    moment one of the two is whole. Where it cannot be written, the run logs a warning and
    continues. The last epoch ends without a checkpoint, because the run's results follow: if these
    are lost, a resumed run repeats the rest of that epoch and writes them.

    Args:
        folder: Where both files are.
        minutes: Longest time between two checkpoints, up to the length of a round or a step.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Checkpoints("run/checkpoints", minutes=5)], logger=False)
    """

    @checked
    def __init__(self, folder: str | Path, minutes: NonNegativeFloat = 10.0) -> None:
        self.folder, self.seconds = Path(folder), 60 * minutes
        self.sigterm_received = False
        self._saved = self._item_start = 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock, and handle SIGTERM until the trainer restores its own handlers."""
        self._saved = time.monotonic()
        self.sigterm_received = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        if trainer.received_sigterm:  # before this, by Lightning's handler
            self._on_sigterm()

    def on_train_batch_start(self, *_: Any) -> None:
        """Start measuring the work item."""
        self._item_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but not after the last item: `on_train_epoch_end` follows.

        An item longer than the grace period is always followed by a checkpoint. So it is the only
        one that is lost if the next, probably as long, has to be interrupted.
        """
        if batch_idx + 1 == trainer.num_training_batches:
            return
        now = time.monotonic()
        long = now - self._item_start > SIGTERM_GRACE_S
        self._save_or_stop(trainer, pl_module, due=long or now - self._saved >= self.seconds)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the run is complete."""
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._save_or_stop(trainer, pl_module, due=True)

    def _save_or_stop(self, trainer: Trainer, pl_module: LightningModule, due: bool) -> None:
        flags = [due, self.sigterm_received, out_of_time(trainer)]
        due, sigterm, late = distributed.all_reduce_any(flags, pl_module.device)
        if due or sigterm or late:
            self.save(trainer)
        if sigterm or late:
            raise TrainingEnded("SIGTERM" if sigterm else "max_time")

    def _on_sigterm(self, *_: Any) -> None:
        if self.sigterm_received:  # a second signal, perhaps a launcher's, gives no more time
            return
        self.sigterm_received = True
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, self._on_deadline)
            signal.setitimer(signal.ITIMER_REAL, SIGTERM_GRACE_S)

    def _on_deadline(self, *_: Any) -> None:
        raise TrainingEnded("SIGTERM")

    def _cancel_deadline(self) -> None:
        if self.sigterm_received and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Training is over: nothing is left to be interrupted."""
        self._cancel_deadline()

    on_exception = teardown

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, or warn that it cannot be written; to be called on all ranks.

        `trainer.save_checkpoint` would write to the folder for temporary files first, which may be
        on a smaller disk, and where a killed process leaves what it wrote.
        """
        self._cancel_deadline()
        try:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if trainer.is_global_zero:
                self._write(content)
        except OSError as error:
            self._warn(cannot_write(error))
        trainer.strategy.barrier("checkpoint")  # no rank ends before it is there
        self._saved = time.monotonic()

    def _write(self, content: dict[str, Any]) -> None:
        last, buffer = self.folder / LAST, io.BytesIO()
        torch.save(content, buffer)
        write_durably(self.folder / NEXT, buffer.getbuffer())
        if last.exists():
            os.replace(last, self.folder / PREVIOUS)
        os.replace(self.folder / NEXT, last)
        sync_folder(self.folder)

    @rank_zero_only
    def _warn(self, problem: str) -> None:
        known = (self.folder / name for name in (LAST, PREVIOUS))
        kept = next((path for path in known if path.exists()), None)
        log.warning(
            "%s. The run continues, and tries again with the next checkpoint; until then %s.",
            problem,
            "there is none to resume from" if kept is None else
            f"it could be resumed from '{kept}' of {time.ctime(kept.stat().st_mtime)}",
        )  # fmt: skip

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Save the rows of `metrics.csv`: a resumed run will write those after them again."""
        files = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        for file in files:
            if isinstance(file, MetricsFile):  # others may fail, on this rank alone
                file.save()
        checkpoint["rows"] = rows(files[0]) if files and trainer.is_global_zero else ""

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the rows of `metrics.csv`."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                restore_rows(logger, checkpoint.get("rows", ""))


def out_of_time(trainer: Trainer) -> bool:
    """Whether `max_time` is over: Lightning would end the run as if it were complete."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in callbacks if isinstance(timer, Timer)]
    return any(seconds is not None and seconds <= 0 for seconds in left)
