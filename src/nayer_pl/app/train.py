"""From a composed configuration to a finished run, its missing teacher included."""

import logging
import shlex
from pathlib import Path
from typing import Any

from hydra import compose
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from nayer_pl.app.config_store import log_recipe
from nayer_pl.app.instantiate import build
from nayer_pl.app.output import (
    environment_info,
    ignore_write_errors,
    open_loggers,
    publish_summary,
    quiet_lightning,
)
from nayer_pl.app.resume import load_summary, log_resume_hint, open_run
from nayer_pl.app.run_dir import check_export, check_options, remove_if_empty
from nayer_pl.app.signals import Terminated, raise_if_incomplete, sigterm_received
from nayer_pl.callbacks.progress import PhaseTimer
from nayer_pl.errors import InputError, NayerError

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run what `cfg` describes, and leave its results in `cfg.run_dir`.

    Returns:
        The summary (flat, as in `summary.json`), and the objects of the run by name.

    Raises:
        NayerError: The configuration or an input cannot work, or a loss is not finite.
        Terminated: The process got SIGTERM, or `trainer.max_time` is over; the run can be resumed.
    """
    quiet_lightning()
    try:
        with ignore_write_errors():
            summary, objects = run_training(cfg)
    except (SystemExit, KeyboardInterrupt) as end:  # Lightning exits after Ctrl-C
        log_resume_hint(cfg, getattr(end, "reason", "Ctrl-C"))
        raise
    except NayerError:
        remove_if_empty(cfg.run_dir)
        raise
    if cfg.sweep and objects and sigterm_received(objects["trainer"]):
        raise Terminated  # this job is complete, but the next one must not begin
    return summary, objects


def run_training(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """`train` without the answers to how it ended; also what trains a missing teacher."""
    summary, checkpoint = open_run(cfg)
    if summary is not None:
        return summary, {}
    log_recipe(cfg)
    datamodule = build(cfg.datamodule)  # first: a plan that cannot work is refused before any work
    epochs = cfg.trainer.max_epochs or datamodule.max_epochs
    check_options(cfg, epochs)
    callbacks = {name: build(node) for name, node in cfg.callbacks.items() if node}
    check_export(cfg, callbacks)
    seconds_teacher = train_missing_teacher(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    method, timer = build(cfg.model), PhaseTimer()
    with open_loggers(cfg, resume=checkpoint is not None) as loggers:
        trainer: Trainer = build(
            cfg.trainer,
            max_epochs=epochs,
            callbacks=[timer, *callbacks.values()],
            logger=loggers,
            default_root_dir=cfg.run_dir,
        )
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint)
        raise_if_incomplete(trainer, epochs)
        summary = {
            "seed": cfg.seed,
            "precision": str(trainer.precision),
            **method.results(),
            "seconds_teacher": seconds_teacher,
            **timer.figures(),
            **environment_info(trainer.strategy.root_device, trainer.world_size),
        }
        publish_summary(summary, Path(cfg.run_dir), Path(cfg.export.path), loggers)
        trainer.strategy.barrier("finished")  # the files are there, for every rank
    return summary, {"trainer": trainer, "method": method, "datamodule": datamodule}


def train_missing_teacher(cfg: DictConfig) -> float:
    """Train the teacher as `teacher.trained_by` says, if it is missing; the seconds that this took.

    Raises:
        InputError: It is missing, and training it was not asked for.
    """
    teacher, folder = cfg.teacher, Path(cfg.run_dir) / "teacher"
    known = "teacher" in cfg.model and teacher.weights and teacher.trained_by
    missing = known and not Path(teacher.weights).exists()
    if missing and not cfg.train_missing_teacher:
        raise InputError(
            f"The teacher's weights are not at '{teacher.weights}'; give teacher.weights=PATH, or "
            f"train them: python train.py {teacher.trained_by} teacher.weights='{teacher.weights}'"
        )
    if not missing:
        before = load_summary(folder)  # of this run, which was interrupted since
        return before["seconds_training"] if before else 0.0
    log.info("The teacher's weights are not at '%s' yet: training it.", teacher.weights)
    summary, objects = run_training(teacher_config(cfg, folder))
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
