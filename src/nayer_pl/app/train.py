"""From a composed configuration to a finished run."""

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from hydra import compose
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.app.console import quiet_lightning, unbroken_console
from nayer_pl.app.instantiate import build, check
from nayer_pl.app.machine import environment_info
from nayer_pl.app.resume import check_same_run, find_checkpoint, finished
from nayer_pl.app.run_dir import prepare_run_dir, remove_if_empty
from nayer_pl.app.summary import print_summary, write_summary
from nayer_pl.callbacks.checkpoint import MAX_TIME, Checkpoints, out_of_time
from nayer_pl.callbacks.loggers import AFTER_SIGTERM, OfflineSafeWandbLogger, close, sync_command
from nayer_pl.callbacks.timer import PhaseTimer
from nayer_pl.errors import InputError, NayerError, Terminated, require
from nayer_pl.runtime.files import cannot_write, write_durably

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run what `cfg` describes, and leave its results in `cfg.run_dir`.

    Returns:
        The summary (flat, as in `summary.json`), and the objects of the run by name.

    Raises:
        NayerError: the configuration or an input cannot work, or a loss is not finite.
        Terminated: the process got SIGTERM, or `trainer.max_time` is over; the run can be
            continued.
    """
    quiet_lightning()
    try:
        with unbroken_console():
            summary, objects = _train(cfg)
    except (SystemExit, KeyboardInterrupt) as end:  # Lightning exits after Ctrl-C
        say_how_to_go_on(cfg, getattr(end, "reason", "Ctrl-C"))
        raise
    except NayerError:
        remove_if_empty(cfg.run_dir)
        raise
    if cfg.sweep and told_to_end(objects):  # when it was over anyhow, but the next job is not
        raise Terminated
    return summary, objects


def _train(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    summary = finished(cfg.run_dir) if cfg.resume or cfg.ckpt_path else None
    if summary is not None:
        name_classes(cfg)
        check_same_run(cfg)
        log.info("'%s' holds a finished run; there is nothing to go on with.", cfg.run_dir)
        return summary, {}
    checkpoint = find_checkpoint(cfg.run_dir, cfg.resume, cfg.ckpt_path)
    prepare_run_dir(cfg.run_dir, again=cfg.resume == "auto" or checkpoint is not None)
    name_classes(cfg)
    if checkpoint is not None:
        check_same_run(cfg)
        log.info("Going on from '%s'.", checkpoint)
    elif cfg.resume:
        log.info("There is no checkpoint in '%s' yet: a new run begins.", cfg.run_dir)
    datamodule = build(cfg.datamodule)  # first: a plan that cannot work is refused before any work
    epochs = cfg.trainer.max_epochs or datamodule.max_epochs
    check_options(cfg, epochs)
    callbacks = [build(node) for node in cfg.callbacks.values() if node]
    seconds_teacher = train_missing_teacher(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    method = build(cfg.model)
    loggers = start_loggers(cfg, again=checkpoint is not None)
    timer = PhaseTimer()
    try:
        trainer: Trainer = build(
            cfg.trainer,
            max_epochs=epochs,
            callbacks=[timer, *callbacks],
            logger=loggers,
            default_root_dir=cfg.run_dir,
        )
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if out_of_time(trainer) and trainer.current_epoch < epochs:  # since before a resume
            raise Terminated(MAX_TIME)
        summary = {
            "seed": cfg.seed,
            "precision": str(trainer.precision),
            **method.results(),
            "seconds_teacher": seconds_teacher,
            **timer.figures(),
            **environment_info(trainer.strategy.root_device, trainer.world_size),
        }
        finish(Path(cfg.run_dir), summary, loggers, Path(cfg.export.path))
        trainer.strategy.barrier("finished")  # the files are there, for every rank
    except Terminated as end:
        close(loggers, AFTER_SIGTERM, failed=True)
        end.at_once = any(
            isinstance(each, OfflineSafeWandbLogger) and each.uploading for each in loggers
        )
        raise
    except BaseException:
        close(loggers, failed=True)
        raise
    close(loggers)
    return summary, {"trainer": trainer, "method": method, "datamodule": datamodule}


def check_options(cfg: DictConfig, epochs: int) -> None:
    """See what can be seen of the options before a teacher is trained.

    Raises:
        InputError: one of them is unknown, or has no such value.
    """
    require(0 <= cfg.seed < 2**32, "seed", "from 0 to 4294967295", cfg.seed)
    for node in (cfg.model, cfg.trainer, *cfg.logger.values()):
        check(node)
    trainer, every = cfg.trainer, cfg.trainer.log_every_n_steps
    require(every >= 1, "trainer.log_every_n_steps", "at least 1", every)
    digits = trainer.precision not in ("16-true", "bf16-true")
    wanted = "mixed or full, as bf16-mixed or 32-true"
    require(digits, "trainer.precision", wanted, trainer.precision)
    every = trainer.get("check_val_every_n_epoch") or 1
    wanted = f"a divisor of the run's {epochs} epochs, so that the last one is evaluated"
    last = every >= 1 and epochs % every == 0
    require(last, "trainer.check_val_every_n_epoch", wanted, every)


def name_classes(cfg: DictConfig) -> None:
    """Put the class names into `cfg`, and their number where the data set leaves it open.

    Raises:
        InputError: the names cannot be had, or are not as many as the data set has classes.
    """
    names = build(cfg.class_names)
    if cfg.data.num_classes is None:
        cfg.data.num_classes = len(names)
    if len(names) != cfg.data.num_classes:
        raise InputError(
            f"There are {len(names)} class names, but the data set has {cfg.data.num_classes} "
            "classes; give one name per class, in the order of the labels, as data.class_names."
        )
    cfg.class_names = names


def train_missing_teacher(cfg: DictConfig) -> float:
    """Train the teacher as `teacher.trained_by` says, if that is wanted and it is not there yet.

    Returns:
        The seconds that the run spent on it; 0.0 if there was nothing to do.
    """
    teacher, folder = cfg.teacher, Path(cfg.run_dir) / "teacher"
    wanted = cfg.train_missing_teacher and teacher.weights and teacher.trained_by
    if not wanted or "teacher" not in cfg.model or Path(teacher.weights).exists():
        before = finished(folder)  # this run was interrupted since
        return before["seconds_training"] if before else 0.0
    log.info("The teacher's weights are not at '%s' yet: training it.", teacher.weights)
    overrides = [
        *shlex.split(teacher.trained_by),
        f"seed={cfg.seed}",
        f"run_dir='{folder}'",
        "logger=csv",
        f"resume={cfg.resume or 'null'}",
    ]
    nested = compose("train", overrides=overrides)
    # What was chosen for this run holds for its teacher, but not how long it trains.
    chosen = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    nested.data, nested.teacher = chosen.data, chosen.teacher
    nested.class_names = chosen.class_names
    nested.trainer = {**chosen.trainer, "max_epochs": None, "check_val_every_n_epoch": 1}
    summary, objects = _train(nested)
    if told_to_end(objects):  # too late for the teacher, but not for what would follow
        raise Terminated
    return summary["seconds_training"]


def told_to_end(objects: dict[str, Any]) -> bool:
    """Whether SIGTERM came when a run was as good as over."""
    callbacks = objects["trainer"].callbacks if objects else []
    return any(isinstance(each, Checkpoints) and each.told_to_end for each in callbacks)


def start_loggers(cfg: DictConfig, again: bool = False) -> list[Logger]:
    """Open the loggers, with the whole configuration in each and in the run's directory.

    Args:
        cfg: of the run.
        again: it goes on: with its W&B run, and with the configuration that it was started with.
    """
    loggers: list[Logger] = [
        build(node, again=again) if "again" in node else build(node)
        for node in cfg.logger.values()
        if node
    ]
    file = Path(cfg.run_dir) / "config.yaml"
    if rank_zero_only.rank == 0 and not (again and file.exists()):  # type: ignore[attr-defined]
        write_durably(file, OmegaConf.to_yaml(cfg, resolve=True).encode())
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # it has config.yaml beside it
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    return loggers


@rank_zero_only
def finish(run_dir: Path, summary: dict[str, Any], loggers: list[Logger], product: Path) -> None:
    """Write the summary, print the table.

    Raises:
        InputError: the summary cannot be written.
    """
    trouble = None
    try:
        write_summary(run_dir / "summary.json", summary)
    except OSError as error:
        trouble = error
    files = {"weights": os.path.relpath(product)} if product.exists() else {}
    files["directory"] = os.path.relpath(run_dir)
    for logger in loggers:
        if isinstance(logger, OfflineSafeWandbLogger):
            logger.summarize(summary)
            command = sync_command(logger)
            if command:
                files["W&B, offline"] = command
    print_summary(summary, files)
    if trouble is not None:
        raise InputError(
            f"{cannot_write(trouble)}, so the run does not count as finished, though its weights "
            "are there. Make room: the same command with resume=auto then repeats its end."
        ) from trouble


@rank_zero_only
def say_how_to_go_on(cfg: DictConfig, reason: str) -> None:
    """One sentence for a run that was told to end."""
    option, path = "run_dir", Path(cfg.run_dir)
    if cfg.sweep:
        option, path = "hydra.sweep.dir", path.parent
    how = f"resume=auto {option}='{os.path.relpath(path)}'"
    log.warning("Ended by %s. To go on: the same command with %s.", reason, how)
