"""Weights & Biases without a login or a lost run, and a `metrics.csv` that survives a full disk."""

import csv
import io
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.errors import first_line
from nayer_pl.runtime.files import append, cannot_write, write_durably

log = logging.getLogger(__name__)

UPLOAD_TIMEOUT_S = 300.0  # how long the end of a run waits; `wandb sync` uploads the rest


class OfflineSafeWandbLogger(WandbLogger):
    """Lightning's WandbLogger; if Weights & Biases fails, the run continues without it.

    The arguments are those of the base class; `wandb_logger` makes one that is offline if nobody is
    logged in.
    """

    failed = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self._guarded(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self._guarded(super().log_hyperparams, *args, **kwargs)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self._guarded(super().log_image, *args, **kwargs)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Set the columns of the table of runs."""
        self._guarded(lambda: self.experiment.summary.update(summary))

    def set_axes(self) -> None:
        """Draw over student updates; synthesis over its rounds, because warm-up has no updates."""
        self._guarded(self.experiment.define_metric, "*", step_metric="student_updates")
        self._guarded(self.experiment.define_metric, "synthesis/*", step_metric="synthesis/round")

    def finish(self, timeout: float | None = None, failed: bool = False) -> bool:
        """End the W&B run, which uploads the rest of it; whether that was complete in time.

        Args:
            timeout: Seconds to wait for that; None for W&B's own limit.
            failed: Whether the run ended early.
        """
        if timeout is None:
            self._finish(int(failed))
            return True
        end = threading.Thread(target=self._finish, args=[int(failed)], daemon=True)
        end.start()
        end.join(timeout)
        if end.is_alive():
            log.warning("The upload to Weights & Biases is not complete: wandb sync completes it.")
        return not end.is_alive()

    def _finish(self, status: int) -> None:
        if not self.failed:
            self._guarded(self.experiment.finish, exit_code=status)
        else:
            with suppress(Exception):
                self.experiment.finish(exit_code=status)

    def _guarded(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call something that only W&B needs; after the first failure, call nothing more."""
        if self.failed:
            return
        try:
            act(*args, **kwargs)
        except Exception as error:  # W&B's errors have no common base, and none may end the run
            self.failed = True
            log.warning(
                "Weights & Biases failed (%s: %s). The run continues without it.",
                type(error).__name__, first_line(error),
            )  # fmt: skip


def wandb_logger(
    project: str,
    name: str,
    save_dir: str,
    mode: str | None = None,
    resume_run: bool = False,
    **options: Any,
) -> OfflineSafeWandbLogger:
    """Start a W&B run; offline if nobody is logged in or the service cannot be reached.

    Args:
        project: Name of the W&B project.
        name: Name of the W&B run.
        save_dir: Directory of the run; W&B's files are in `save_dir/wandb`.
        mode: "online", "offline" or "disabled"; None for the variable WANDB_MODE or, without it,
            online after `wandb login` and offline otherwise.
        resume_run: Whether to continue the last W&B run recorded in `save_dir`.
        options: Anything else that `wandb.init` takes, such as entity, group and tags.
    """
    import wandb

    mode = mode or os.environ.get("WANDB_MODE") or _mode_by_login(wandb)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        mode = "disabled"
    known = _recorded_id(save_dir) if resume_run else None
    if known is not None:
        options |= {"id": known, "resume": "allow"}

    def start(mode: str, *otherwise: str) -> Any:
        # Offline, W&B prints nothing of interest: the summary says how to upload the run.
        settings = wandb.Settings(silent=mode != "online", finish_timeout=UPLOAD_TIMEOUT_S)
        chosen: Any = {"project": project, "name": name, "dir": save_dir, "mode": mode}
        try:
            return wandb.init(**chosen, settings=settings, **options)
        except Exception as error:  # of W&B, of its service, of the network
            if not otherwise:
                raise
            log.warning(
                "Weights & Biases cannot be used (%s); %s.", first_line(error),
                "recording offline" if otherwise[0] == "offline" else
                "the run continues without it",
            )  # fmt: skip
            return start(*otherwise)

    run = start(mode, "offline", "disabled")
    logger = OfflineSafeWandbLogger(project=project, save_dir=save_dir, experiment=run)
    logger.set_axes()
    return logger


def _mode_by_login(wandb: Any) -> str:
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # an unreachable server must not stop a run
        log.warning("Weights & Biases cannot check the login (%s); recording offline.", error)
        return "offline"
    return "online" if logged_in else "offline"


def _recorded_id(save_dir: str) -> str | None:
    """The id of the last W&B run in `save_dir`."""
    # By the run's file, because of two folders of one second the second has a longer name.
    files = (Path(save_dir) / "wandb").glob("*run-*-*/run-*.wandb")
    last = max(files, key=lambda file: file.parent.name.partition("run-")[2], default=None)
    return None if last is None else last.stem.removeprefix("run-")


def close_wandb(
    loggers: Iterable[Logger], timeout: float | None = None, failed: bool = False
) -> bool:
    """`finish` those of W&B, so that the next job of this process begins a W&B run of its own."""
    ours = [each for each in loggers if isinstance(each, OfflineSafeWandbLogger)]
    complete = [each.finish(timeout, failed) for each in ours]
    return all(complete)


def sync_command(logger: OfflineSafeWandbLogger) -> str | None:
    """The command that uploads an offline run; None if the run is online or records nothing."""
    run = logger.experiment
    if not getattr(run, "offline", False) or getattr(run, "disabled", False):
        return None
    folder = Path(run.dir).parent
    if len(list(folder.parent.glob(f"*-{run.id}*"))) > 1:  # the run was resumed
        folder = folder.with_name(f"offline-run-*-{run.id}*")
    return f"wandb sync {os.path.relpath(folder)}"


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger for a disk that may be full.

    Rows that cannot be written wait in memory until they can, and checkpoints hold them. No row is
    written twice or in part.

    Args:
        save_dir: The run's directory; the others are as in the base class.

    Example:
        >>> logger = MetricsFile("run", name="", version="")
        >>> logger.log_metrics({"loss": 0.5}, step=1)
        >>> rows(logger).split()
        ['loss,step', '0.5,1']
    """

    _waiting = False

    @rank_zero_only
    def save(self) -> None:
        """Write the rows since the last time, or warn that they cannot be written."""
        try:
            self._write()
            self._waiting = False
        except OSError as error:
            if not self._waiting:
                log.warning("%s; its rows wait in memory until it can be.", cannot_write(error))
            self._waiting = True

    def _write(self) -> None:
        writer = self.experiment
        path, new = Path(writer.metrics_file_path), writer.metrics
        if not new:
            return
        keys = _columns(writer.metrics_keys, new)
        if keys != writer.metrics_keys or not path.exists():
            write_durably(path, rows(self).encode())
        else:
            append(path, _table(new, keys).encode())
        writer.metrics, writer.metrics_keys = [], keys


def rows(logger: CSVLogger) -> str:
    """All rows so far as CSV, written or not."""
    writer = logger.experiment
    path = Path(writer.metrics_file_path)
    written = path.read_bytes().decode() if path.exists() else ""
    if not writer.metrics:
        return written
    keys = _columns(writer.metrics_keys, writer.metrics)
    header = dict(zip(keys, keys, strict=True))
    return _table([header, *csv.DictReader(written.splitlines()), *writer.metrics], keys)


def restore_rows(logger: CSVLogger, content: str) -> None:
    """Let a new logger continue after these rows; by itself it would begin an empty file."""
    writer = logger.experiment
    if content:
        write_durably(Path(writer.metrics_file_path), content.encode())
        writer.metrics_keys = next(csv.reader(content.splitlines()))


def _columns(written: Iterable[str], new: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({*written, *(name for row in new for name in row)})


def _table(table: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, keys).writerows(table)
    return text.getvalue()
