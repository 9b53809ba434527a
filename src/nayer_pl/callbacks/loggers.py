"""Weights & Biases, without ever asking for a login or stopping a run."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds that the end of a run waits for an upload; `wandb sync` does the rest
AFTER_SIGTERM = 8.0  # likewise; SLURM gives 30 in all, of which a round may take half


class OfflineSafeWandbLogger(WandbLogger):
    """Lightning's WandbLogger; if Weights & Biases fails on the way, the run goes on without it."""

    lost = False
    uploading = False  # whether its end was not waited for: the process must not, either

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self.attempt(super().log_metrics, *args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self.attempt(super().log_hyperparams, *args, **kwargs)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """As in the base class, if that works."""
        self.attempt(super().log_image, *args, **kwargs)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """What stands in the table of runs."""
        self.attempt(lambda: self.experiment.summary.update(summary))

    def finish(self, patience: float | None = None, failed: bool = False) -> None:
        """End the W&B run, which sends what it still has; wait for it so long.

        Args:
            patience: seconds; None for W&B's own.
            failed: the run did not get to its end.
        """
        if patience is None:
            self._finish(int(failed))
            return
        end = threading.Thread(target=self._finish, args=[int(failed)], daemon=True)
        end.start()
        end.join(patience)
        self.uploading = end.is_alive()
        if self.uploading:
            log.warning("Weights & Biases has not got everything: wandb sync sends the rest.")

    def _finish(self, status: int) -> None:
        if not self.lost:
            self.attempt(self.experiment.finish, exit_code=status)
        else:
            with suppress(Exception):
                self.experiment.finish(exit_code=status)

    def attempt(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Do something that only Weights & Biases needs; after the first failure, nothing more."""
        if self.lost:
            return
        try:
            act(*args, **kwargs)
        except Exception as error:  # whatever it is, it is not the run's trouble
            self.lost = True
            log.warning(
                "Weights & Biases failed (%s: %s). The run goes on, and is recorded there no more.",
                type(error).__name__, _line(error),
            )  # fmt: skip


def wandb_logger(
    project: str,
    name: str,
    save_dir: str,
    mode: str | None = None,
    again: bool = False,
    **options: Any,
) -> OfflineSafeWandbLogger:
    """Lightning's WandbLogger; offline where nobody is logged in or nothing can be reached.

    Args:
        project, name: of the run.
        save_dir: the run's files are in `save_dir/wandb`.
        mode: "online", "offline" or "disabled"; None for the variable WANDB_MODE or, without it,
            online after `wandb login` and offline otherwise.
        again: go on with the last run recorded in `save_dir`.
        options: anything else that `wandb.init` takes, such as entity, group and tags.

    The charts' x axis is the number of student updates; synthesis is drawn over its rounds,
    because during warm-up the student is not updated at all.
    """
    import wandb

    mode = mode or os.environ.get("WANDB_MODE") or _mode_by_login(wandb)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        mode = "disabled"
    known = recorded_id(save_dir) if again else None
    if known is not None:
        options |= {"id": known, "resume": "allow"}

    def start(mode: str) -> Any:
        return wandb.init(
            project=project,
            name=name,
            dir=save_dir,
            mode=mode,  # type: ignore[arg-type]
            # Offline, W&B's own lines are about nothing: the summary says how to upload the run.
            settings=wandb.Settings(silent=mode != "online", finish_timeout=PATIENCE),
            **options,
        )

    for instead in ("offline", "disabled"):
        try:
            run = start(mode)
            break
        except Exception as error:  # of W&B, of its service, of the network
            log.warning(
                "Weights & Biases cannot be used (%s); %s.", _line(error),
                "recording offline" if instead == "offline" else "the run goes on without it",
            )  # fmt: skip
            mode = instead
    else:
        run = start("disabled")
    logger = OfflineSafeWandbLogger(project=project, save_dir=save_dir, experiment=run)
    logger.attempt(run.define_metric, "*", step_metric="student_updates")
    logger.attempt(run.define_metric, "synthesis/*", step_metric="synthesis/round")
    return logger


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _mode_by_login(wandb: Any) -> str:
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:  # an unreachable server must not stop a run
        log.warning("Weights & Biases cannot check the login (%s); recording offline.", error)
        return "offline"
    return "online" if logged_in else "offline"


def recorded_id(save_dir: str | Path) -> str | None:
    """The id of the last W&B run in `save_dir`; None if there is none."""
    # Not from the folders' own names: of two in the same second, the second one's is longer.
    files = (Path(save_dir) / "wandb").glob("*run-*-*/run-*.wandb")
    last = max(files, key=lambda file: file.parent.name.partition("run-")[2], default=None)
    return None if last is None else last.stem.removeprefix("run-")


def close(loggers: Iterable[Logger], patience: float | None = None, failed: bool = False) -> None:
    """End the W&B run: the next one in this process is a run of its own."""
    for logger in loggers:
        if isinstance(logger, OfflineSafeWandbLogger):
            logger.finish(patience, failed)


def sync_command(logger: OfflineSafeWandbLogger) -> str | None:
    """What uploads an offline run later; None if it is online already or records nothing."""
    run = logger.experiment
    if not getattr(run, "offline", False) or getattr(run, "disabled", False):
        return None
    folder = Path(run.dir).parent
    if len(list(folder.parent.glob(f"*-{run.id}*"))) > 1:  # the run was resumed
        folder = folder.with_name(f"offline-run-*-{run.id}*")
    return f"wandb sync {os.path.relpath(folder)}"
