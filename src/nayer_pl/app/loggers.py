"""The loggers of a run, from its configuration to their end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from nayer_pl.app.instantiate import build
from nayer_pl.callbacks.checkpoint import Terminated
from nayer_pl.callbacks.loggers import SIGTERM_UPLOAD_S, OfflineSafeWandbLogger, close_wandb
from nayer_pl.runtime.files import write_durably


@contextmanager
def open_loggers(cfg: DictConfig, resume: bool = False) -> Iterator[list[Logger]]:
    """Open the loggers, with the whole configuration in each and in the run's directory.

    Args:
        cfg: The configuration of the run.
        resume: Whether the run is resumed: then its W&B run is too, and the configuration that it
            was started with stays.
    """
    loggers: list[Logger] = [
        build(node, resume_run=resume) if "resume_run" in node else build(node)
        for node in cfg.logger.values()
        if node
    ]
    file = Path(cfg.run_dir) / "config.yaml"
    if rank_zero_only.rank == 0 and not (resume and file.exists()):  # type: ignore[attr-defined]
        write_durably(file, OmegaConf.to_yaml(cfg, resolve=True).encode())
    for logger in loggers:
        if not isinstance(logger, CSVLogger):  # it has config.yaml beside it
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    try:
        yield loggers
    except Terminated as end:
        close_wandb(loggers, SIGTERM_UPLOAD_S, failed=True)
        wandb = [each for each in loggers if isinstance(each, OfflineSafeWandbLogger)]
        end.at_once = any(each.uploading for each in wandb)
        raise
    except BaseException:
        close_wandb(loggers, failed=True)
        raise
    close_wandb(loggers)
