"""What a run prints and logs: quiet libraries, an unwritable console, and the loggers."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from nayer_pl.app.instantiate import build
from nayer_pl.app.signals import SIGTERM_UPLOAD_S, Terminated
from nayer_pl.callbacks.checkpoint import TrainingEnded
from nayer_pl.callbacks.loggers import close_wandb
from nayer_pl.runtime.files import write_durably


class IgnoreWriteErrors:
    """A text stream that drops what cannot be written, for example on a full disk."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that works."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that works."""
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def ignore_write_errors() -> Iterator[None]:
    """Print to `IgnoreWriteErrors`: progress bars and tables do not expect a full disk."""
    out, err = IgnoreWriteErrors(sys.stdout), IgnoreWriteErrors(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class TqdmLoggingHandler(logging.StreamHandler[Any]):
    """Logs to the current standard output, on lines of their own above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record with `tqdm.write`."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
        except Exception:  # as every handler: logging reports it
            self.handleError(record)


def quiet_lightning() -> None:
    """Hide advertisements, and warnings about what is done on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logging.getLogger("nayer_pl").setLevel(logging.ERROR)  # the first process says it already
    if not sys.stderr.isatty():  # a log file, where every state of a bar would stay
        disable_progress_bar()  # the Hub's too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    for message in (
        ".*does not have many workers.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # the metrics are synchronized already
    ):
        warnings.filterwarnings("ignore", message)


@contextmanager
def open_loggers(cfg: DictConfig, resume: bool = False) -> Iterator[list[Logger]]:
    """Open the loggers, with the whole configuration in each and in the run's directory.

    A run that is resumed continues its W&B run, and keeps the configuration that it began with.
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
    except TrainingEnded as end:
        complete = close_wandb(loggers, SIGTERM_UPLOAD_S, failed=True)
        raise Terminated(end.reason, at_once=not complete) from end
    except BaseException:
        close_wandb(loggers, failed=True)
        raise
    close_wandb(loggers)
