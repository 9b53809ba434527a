"""From a composed configuration to a finished run."""

from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from omegaconf import DictConfig

from nayer_pl.app.checks import check_options
from nayer_pl.app.console import ignore_write_errors, quiet_lightning
from nayer_pl.app.instantiate import build
from nayer_pl.app.loggers import open_loggers
from nayer_pl.app.recipes import log_recipe
from nayer_pl.app.resume import log_resume_hint, open_run
from nayer_pl.app.run_dir import remove_if_empty
from nayer_pl.app.summary import environment_info, publish_summary
from nayer_pl.app.teacher import train_missing_teacher
from nayer_pl.callbacks.checkpoint import Terminated, raise_if_incomplete, sigterm_received
from nayer_pl.callbacks.timer import PhaseTimer
from nayer_pl.errors import NayerError


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
    callbacks = [build(node) for node in cfg.callbacks.values() if node]
    seconds_teacher = train_missing_teacher(cfg, run_training)
    seed_everything(cfg.seed, workers=True, verbose=False)
    method, timer = build(cfg.model), PhaseTimer()
    with open_loggers(cfg, resume=checkpoint is not None) as loggers:
        trainer: Trainer = build(
            cfg.trainer,
            max_epochs=epochs,
            callbacks=[timer, *callbacks],
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
