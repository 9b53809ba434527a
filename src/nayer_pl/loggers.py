"""Weights & Biases, without ever asking for a login; and what both loggers need to go on."""

import csv
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.memory.segments import write_durably

log = logging.getLogger(__name__)


def wandb_logger(
    project: str,
    name: str,
    save_dir: str,
    mode: str | None = None,
    again: bool = False,
    **options: Any,
) -> WandbLogger:
    """Lightning's WandbLogger; offline where nobody is logged in.

    Args:
        project, name: of the run.
        save_dir: the run's files are in `save_dir/wandb`.
        mode: "online", "offline" or "disabled"; None for the variable WANDB_MODE or, without it,
            online after `wandb login` and offline otherwise.
        again: go on with the last run recorded in `save_dir`.
        options: anything else that `wandb.init` takes, such as entity, group and tags.

    The charts' x axis is the number of student updates; synthesis is drawn over its rounds,
    because during warm-up the student is not updated at all.
    """
    import wandb

    mode = mode or os.environ.get("WANDB_MODE") or _mode_by_login(wandb)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        mode = "disabled"
    known = recorded_id(save_dir) if again else None
    if known is not None:
        options |= {"id": known, "resume": "allow"}
    run = wandb.init(
        project=project,
        name=name,
        dir=save_dir,
        mode=mode,  # type: ignore[arg-type]
        # Offline, W&B's own lines are about nothing: the summary says how to upload the run.
        settings=wandb.Settings(silent=mode != "online"),
        **options,
    )
    run.define_metric("*", step_metric="student_updates")
    run.define_metric("synthesis/*", step_metric="synthesis/round")
    return WandbLogger(project=project, save_dir=save_dir, experiment=run)


def _mode_by_login(wandb: Any) -> str:
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # an unreachable server must not stop a run
        log.warning("Weights & Biases cannot check the login (%s); recording offline.", error)
        return "offline"
    return "online" if logged_in else "offline"


def rows(logger: CSVLogger) -> str:
    """Everything that was logged so far, as CSV; written to the file as well."""
    logger.save()
    file = Path(logger.experiment.metrics_file_path)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def restore_rows(logger: CSVLogger, content: str) -> None:
    """Let a new logger go on after these rows: on its own it begins anew."""
    writer = logger.experiment
    if content:
        write_durably(Path(writer.metrics_file_path), content.encode())
        writer.metrics_keys = next(csv.reader(content.splitlines()))


def recorded_id(save_dir: str | Path) -> str | None:
    """The id of the last W&B run in `save_dir`; None if there is none."""
    folders = (Path(save_dir) / "wandb").glob("*run-*-*")
    last = max(folders, key=lambda folder: folder.name.partition("run-")[2], default=None)
    return None if last is None else last.name.rpartition("-")[2]


def close(loggers: Iterable[Logger]) -> None:
    """End the W&B run, so that the next one in this process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def sync_command(logger: WandbLogger) -> str | None:
    """What uploads an offline run later; None if it is online already or records nothing."""
    run = logger.experiment
    if not getattr(run, "offline", False) or getattr(run, "disabled", False):
        return None
    folder = Path(run.dir).parent
    if len(list(folder.parent.glob(f"*-{run.id}"))) > 1:  # the run was resumed
        folder = folder.with_name(f"offline-run-*-{run.id}")
    return f"wandb sync {os.path.relpath(folder)}"
