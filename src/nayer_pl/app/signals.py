"""Runs that are told to end early, by SIGTERM or `trainer.max_time`: exit status 143."""

import os
import signal
import sys
from typing import NoReturn

from lightning import Trainer

from nayer_pl.callbacks.checkpoint import Checkpoints, TrainingEnded, out_of_time

STATUS = 128 + signal.SIGTERM  # as a shell says it of a process that SIGTERM ended
SIGTERM_UPLOAD_S = 8.0  # for Weights & Biases; SLURM gives 30 in all, of which a round takes half
REASONS = {"max_time": "trainer.max_time, which counts the time before a resume too; give it more"}


class Terminated(SystemExit):
    """The run was told to end early, and its state is saved; exit status 143.

    Args:
        reason: Who or what ended it.
        at_once: Whether something would still wait when the interpreter ends, and must not.
    """

    def __init__(self, reason: str = "SIGTERM", at_once: bool = False) -> None:
        super().__init__(STATUS)
        self.reason, self.at_once = REASONS.get(reason, reason), at_once

    def end_process(self) -> NoReturn:
        """Exit with that status."""
        if self.at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STATUS)
        raise self


def sigterm_received(trainer: Trainer) -> bool:
    """Whether SIGTERM came too late to end the run early."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(each, Checkpoints) and each.sigterm_received for each in callbacks)


def raise_if_incomplete(trainer: Trainer, epochs: int) -> None:
    """Raise if `fit` returned before the last of the epochs.

    Raises:
        KeyboardInterrupt: It was interrupted.
        TrainingEnded: `trainer.max_time` was over, perhaps before a resume.
    """
    if trainer.interrupted:
        raise KeyboardInterrupt
    if out_of_time(trainer) and trainer.current_epoch < epochs:
        raise TrainingEnded("max_time")
