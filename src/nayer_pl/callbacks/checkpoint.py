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

from nayer_pl.callbacks.metrics_file import MetricsFile, restore_rows, rows
from nayer_pl.errors import InputError, Terminated
from nayer_pl.runtime import distributed
from nayer_pl.runtime.files import cannot_write, sync_folder, write_durably

log = logging.getLogger(__name__)

LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
MAX_TIME = "trainer.max_time, which counts the time before a resume too; give it more"
PATIENCE = 15  # seconds that an item may take after SIGTERM; SLURM gives 30 in all


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` and the one before it, `previous.ckpt`; ends the run after SIGTERM.

    A checkpoint is written to a file of another name, which then takes the place of `last.ckpt`: at
    every moment one of the two is whole. Where it cannot be written, the run says so and goes on.
    The last epoch ends without one, because it is followed by the run's results: whoever goes on
    does that epoch's rest again, and then writes them.

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
        self.told_to_end = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
        if trainer.received_sigterm:  # meanwhile, by Lightning's handler
            self._note()

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
        late = out_of_time(trainer)
        due, end, late = distributed.all_reduce_any([due, self.told_to_end, late], pl_module.device)
        if due or end or late:
            self.save(trainer)
        if end or late:
            raise Terminated("SIGTERM" if end else MAX_TIME)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the run is over."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            return
        self.save(trainer)
        end, late = distributed.all_reduce_any(
            [self.told_to_end, out_of_time(trainer)], pl_module.device
        )
        if end or late:
            raise Terminated("SIGTERM" if end else MAX_TIME)

    # SIGTERM

    def _note(self, *_: Any) -> None:
        if self.told_to_end:  # twice, perhaps by a launcher too: there is no more time for that
            return
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
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    # How

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, or say why not; to be called on all ranks.

        `trainer.save_checkpoint` would write to the folder for temporary files first, which may be
        on a smaller disk, and where a killed process leaves what it wrote.
        """
        self._stop_waiting()
        try:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if trainer.is_global_zero:
                self._write(content)
        except OSError as error:
            self._say(cannot_write(error))
        trainer.strategy.barrier("checkpoint")  # nobody ends before it is there
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
    def _say(self, trouble: str) -> None:
        known = (self.folder / name for name in (LAST, PREVIOUS))
        kept = next((path for path in known if path.exists()), None)
        log.warning(
            "%s. The run goes on, and tries again with the next checkpoint; until then %s.",
            trouble,
            "there is none to go on from" if kept is None else
            f"it could go on from '{kept}' of {time.ctime(kept.stat().st_mtime)}",
        )  # fmt: skip

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the rows of `metrics.csv` along: what comes after them will be made again."""
        files = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        for file in files:
            if isinstance(file, MetricsFile):  # others may fail, on this rank alone
                file.save()
        checkpoint["rows"] = rows(files[0]) if files and trainer.is_global_zero else ""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put them back."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                restore_rows(logger, checkpoint.get("rows", ""))


def out_of_time(trainer: Trainer) -> bool:
    """Whether `trainer.max_time` is over: Lightning would end the run as if it were complete."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in callbacks if isinstance(timer, Timer)]
    return any(seconds is not None and seconds <= 0 for seconds in left)
