"""One of the two ranks that test_resuming_ranks.py looks at: a program of its own.

A run of two ranks without an interruption, and the same run interrupted and resumed. Each leaves
one file per rank in the given folder. The other words of the command line are the numbers of the
checkpoints to resume from.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from running import KeepAll, metrics
from two_ranks import RANK, copied, distiller, synthetic

from nayer_pl.callbacks import PhaseTimer
from nayer_pl.callbacks.checkpoint import Checkpoints, TrainingEnded
from nayer_pl.callbacks.loggers import MetricsFile


class TellOne(Callback):
    """SIGTERM to rank 1 alone, in the middle of the fifth item and after it."""

    items = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.items += 1
        if self.items > 4 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class FullDiskOfRankOne(Callback):
    """It cannot write the images of the first round until the second one begins."""

    room = 100

    def on_train_batch_start(self, *_: Any) -> None:
        if RANK == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, resource.RLIM_INFINITY))
        self.room = resource.RLIM_INFINITY


class AtStart(Callback):
    """Records the bank that a run begins with."""

    bank: tuple[torch.Tensor, torch.Tensor]

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        bank = method.datamodule.bank  # type: ignore[union-attr]
        self.bank = bank.images.clone(), bank.labels.clone()


def run(
    folder: Path, name: str, *callbacks: Callback, of: str = "whole", devices: int = 2,
    ckpt: str | None = None, saver: Checkpoints | None = None, minutes: float = 60,
) -> None:  # fmt: skip
    """Begin a run in the directory `of`, or resume it from `ckpt`, and record its end."""
    method, data, start, timer = distiller(), synthetic(), AtStart(), PhaseTimer()
    checkpoints = folder / of / "checkpoints"
    logger = MetricsFile(folder / of, name="", version="")
    messages = MemoryHandler(capacity=1000)
    logging.getLogger("nayer_pl").addHandler(messages)
    trainer = Trainer(
        accelerator="cpu", devices=devices, max_epochs=data.max_epochs, logger=logger,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, default_root_dir=folder / of,
        callbacks=[start, timer, *callbacks, saver or Checkpoints(checkpoints, minutes)],
    )  # fmt: skip
    reason = None
    try:
        trainer.fit(method, datamodule=data, ckpt_path=checkpoints / ckpt if ckpt else None)
    except TrainingEnded as end:
        reason = end.reason
    logging.getLogger("nayer_pl").removeHandler(messages)
    found = {
        "student": copied(method.student.state_dict()),
        "generator": copied(method.synthesizer.generator.state_dict()),
        "bank": (data.bank.images, data.bank.labels), "first bank": start.bank,
        "updates": method.student_updates, "results": method.results(), "images": timer.images,
        "reason": reason, "said": [record.getMessage() for record in messages.buffer],
        "metrics": metrics(folder / of) if RANK == 0 else None,
    }  # fmt: skip
    torch.save(found, folder / f"{name}_{RANK}.pt")


def main(folder: Path, moments: Sequence[str]) -> None:
    if RANK == 0:  # before there are two
        run(folder, "alone", of="alone", devices=1, saver=KeepAll(folder / "alone/checkpoints"))

    run(folder, "whole", saver=KeepAll(folder / "whole" / "checkpoints"))
    run(folder, "again", ckpt=f"{moments[0]}.ckpt")
    for moment in moments:
        run(folder, f"more_{moment}", of="alone", ckpt=f"{moment}.ckpt")

    run(folder, "told", TellOne(), of="told")
    run(folder, "told_again", of="told", ckpt="last.ckpt")
    run(folder, "full", FullDiskOfRankOne(), of="full", minutes=0)

    torch.distributed.destroy_process_group()
    if RANK == 0:
        for moment in moments:
            run(folder, f"fewer_{moment}", devices=1, ckpt=f"{moment}.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
