"""From a composed configuration to a finished run."""

import logging
import os
import shlex
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.callbacks.timer import PhaseTimer
from nayer_pl.errors import InputError, NayerError
from nayer_pl.loggers import sync_command
from nayer_pl.summary import print_summary, write_summary

log = logging.getLogger(__name__)

SPACE_NEEDED = 64 * 1024**2  # bytes: weights, pictures and logs of a small run


def train(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run what `cfg` describes, and leave its results in `cfg.run_dir`.

    Returns:
        The summary (flat, as in `summary.json`), and the objects of the run by name.

    Raises:
        NayerError: the configuration or an input cannot work, or a loss is not finite.
    """
    quiet_lightning()
    run_dir = prepare_run_dir(cfg.run_dir)
    datamodule = build(cfg.datamodule)  # first: a plan that cannot work is refused before any work
    seconds_teacher = train_missing_teacher(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    method = build(cfg.model)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    loggers: list[Logger] = [build(node) for node in cfg.logger.values() if node]
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # it has config.yaml beside it
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    timer = PhaseTimer()
    trainer: Trainer = build(
        cfg.trainer,
        max_epochs=cfg.trainer.max_epochs or datamodule.max_epochs,
        callbacks=[timer, *(build(node) for node in cfg.callbacks.values() if node)],
        logger=loggers,
        default_root_dir=str(run_dir),
    )
    trainer.fit(method, datamodule=datamodule)
    if trainer.interrupted:
        raise KeyboardInterrupt
    summary = {
        "seed": cfg.seed,
        **method.results(),
        "seconds_teacher": seconds_teacher,
        **phase_figures(timer),
    }
    finish(run_dir, summary, loggers, Path(cfg.export.path))
    return summary, {"trainer": trainer, "method": method, "datamodule": datamodule}


def build(node: DictConfig, **overrides: Any) -> Any:
    """Instantiate a node; an error that a user can mend comes out as it is, not wrapped."""
    try:
        return instantiate(node, **overrides)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, NayerError):
                raise cause from error
            cause = cause.__cause__
        raise


def prepare_run_dir(path: str) -> Path:
    """Make the run's directory and see that it can be written and is not another run's.

    Raises:
        InputError: read-only, full, or already the directory of a finished run.
    """
    run_dir = Path(path).absolute()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir) as probe:
            probe.write(b"\0")
        free = shutil.disk_usage(run_dir).free
    except OSError as error:
        raise InputError(
            f"The run's directory '{run_dir}' cannot be written ({error.strerror}); choose another "
            "with run_dir=PATH."
        ) from error
    if free < SPACE_NEEDED:
        raise InputError(
            f"The disk of '{run_dir}' has {free / 1e6:.0f} MB left and a run needs at least "
            f"{SPACE_NEEDED / 1e6:.0f} MB; make room, or choose another with run_dir=PATH."
        )
    if (run_dir / "config.yaml").exists():
        raise InputError(
            f"'{run_dir}' already holds a run; choose another directory with run_dir=PATH, or "
            "delete that one."
        )
    return run_dir


def train_missing_teacher(cfg: DictConfig) -> float:
    """Train the teacher as `teacher.trained_by` says, if that is wanted and it is not there yet.

    Returns:
        The seconds that it took; 0.0 if there was nothing to do.
    """
    teacher = cfg.teacher
    if not cfg.train_missing_teacher or Path(teacher.weights).exists():
        return 0.0
    log.info("The teacher's weights are not at '%s' yet: training it.", teacher.weights)
    started = time.perf_counter()
    chosen = [
        f"seed={cfg.seed}",
        f"teacher.weights='{teacher.weights}'",
        f"run_dir='{Path(cfg.run_dir) / 'teacher'}'",
        f"trainer.accelerator={cfg.trainer.accelerator}",
        "logger=csv",
    ]
    train(compose("train", overrides=[*shlex.split(teacher.trained_by), *chosen]))
    return time.perf_counter() - started


def phase_figures(timer: PhaseTimer) -> dict[str, float]:
    """Seconds and images per second of the phases that took place."""
    figures = {}
    for phase, seconds in timer.seconds.items():
        if seconds:
            figures[f"seconds_{phase}"] = seconds
            figures[f"images_per_second_{phase}"] = timer.images[phase] / seconds
    return figures


@rank_zero_only
def finish(run_dir: Path, summary: dict[str, Any], loggers: list[Logger], product: Path) -> None:
    """Write the summary, print the table, close the loggers."""
    write_summary(run_dir / "summary.json", summary)
    files = {"weights": os.path.relpath(product), "directory": os.path.relpath(run_dir)}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(summary)
            command = sync_command(logger)
            if command:
                files["W&B, offline"] = command
            logger.experiment.finish()
    print_summary(summary, files)


def quiet_lightning() -> None:
    """Keep advertisements and remarks about choices that are made on purpose off the screen."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*module.s. in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message)
