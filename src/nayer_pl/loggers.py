"""Weights & Biases, without ever asking for a login."""

import logging
import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)


def wandb_logger(**options: Any) -> WandbLogger:
    """Lightning's WandbLogger; offline where nobody is logged in.

    Args:
        options: of `WandbLogger`. `mode`, or the variable WANDB_MODE, decides by itself what
            happens; without either, a missing login means "offline".

    The charts' x axis is the number of student updates; synthesis is drawn over its rounds,
    because during warm-up the student is not updated at all.
    """
    import wandb

    if not options.get("mode"):
        options["mode"] = os.environ.get("WANDB_MODE") or _mode_by_login(wandb)
    if options["mode"] != "online":
        # W&B prints about itself in every mode; ours is one line, at the end of the run.
        options.setdefault("settings", wandb.Settings(silent=True))
    logger = WandbLogger(**options)
    if options["mode"] != "disabled":
        run = logger.experiment
        run.define_metric("student_updates")
        run.define_metric("synthesis/round")
        run.define_metric("*", step_metric="student_updates")
        run.define_metric("synthesis/*", step_metric="synthesis/round")
    return logger


def _mode_by_login(wandb: Any) -> str:
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # an unreachable server must not stop a run
        log.warning("Weights & Biases cannot check the login (%s); recording offline.", error)
        return "offline"
    return "online" if logged_in else "offline"


def sync_command(logger: WandbLogger) -> str | None:
    """What uploads an offline run later; None if it is online already or records nothing."""
    run = logger.experiment
    if not getattr(run, "offline", False) or getattr(run, "disabled", False):
        return None
    return f"wandb sync {os.path.relpath(os.path.dirname(run.dir))}"
