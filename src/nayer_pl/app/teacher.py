"""A teacher that is not there yet is trained first, by a run inside the run's directory."""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from nayer_pl.app.resume import load_summary
from nayer_pl.callbacks.checkpoint import Terminated, sigterm_received

log = logging.getLogger(__name__)

Run = Callable[[DictConfig], tuple[dict[str, Any], dict[str, Any]]]


def train_missing_teacher(cfg: DictConfig, run: Run) -> float:
    """Train the teacher as `teacher.trained_by` says, if that is asked for and it is missing.

    Args:
        cfg: The configuration of the distillation.
        run: Trains what a configuration describes (`nayer_pl.app.train.run_training`).

    Returns:
        The seconds that the training took; 0.0 if there was nothing to do.
    """
    teacher, folder = cfg.teacher, Path(cfg.run_dir) / "teacher"
    asked = cfg.train_missing_teacher and teacher.weights and teacher.trained_by
    if not asked or "teacher" not in cfg.model or Path(teacher.weights).exists():
        before = load_summary(folder)  # of this run, which was interrupted since
        return before["seconds_training"] if before else 0.0
    log.info("The teacher's weights are not at '%s' yet: training it.", teacher.weights)
    summary, objects = run(teacher_config(cfg, folder))
    if objects and sigterm_received(objects["trainer"]):
        raise Terminated  # the teacher is complete, but the student must not begin
    return summary["seconds_training"]


def teacher_config(cfg: DictConfig, folder: Path) -> DictConfig:
    """The configuration of the teacher's run, with the data and hardware of this one."""
    nested = compose(
        "train",
        overrides=[
            *shlex.split(cfg.teacher.trained_by),
            f"seed={cfg.seed}",
            f"run_dir='{folder}'",
            "logger=csv",
            f"resume={cfg.resume or 'null'}",
        ],
    )
    chosen = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    nested.data, nested.teacher = chosen.data, chosen.teacher
    nested.class_names = chosen.class_names
    # How long a teacher trains is its own recipe's business.
    nested.trainer = {**chosen.trainer, "max_epochs": None, "check_val_every_n_epoch": 1}
    return nested
