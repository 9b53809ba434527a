"""Weights & Biases, without ever asking for a login."""

import logging
import os
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


def wandb_logger(
    project: str, name: str, save_dir: str, mode: str | None = None, **options: Any
) -> WandbLogger:
    """Lightning's WandbLogger; offline where nobody is logged in.

    Args:
        project, name: of the run.
        save_dir: the run's files are in `save_dir/wandb`.
        mode: "online", "offline" or "disabled"; None for the variable WANDB_MODE or, without it,
            online after `wandb login` and offline otherwise.
        options: anything else that `wandb.init` takes, such as entity, group and tags.

    The charts' x axis is the number of student updates; synthesis is drawn over its rounds,
    because during warm-up the student is not updated at all.
    """
    import wandb

    mode = mode or os.environ.get("WANDB_MODE") or _mode_by_login(wandb)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        mode = "disabled"
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
    return f"wandb sync {os.path.relpath(os.path.dirname(run.dir))}"
