"""Numbers for the loggers and the progress bar, without making a device wait."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer


def log_metrics(module: LightningModule, values: Mapping[str, Any], student_updates: int) -> None:
    """Send values to every logger, against student updates: `trainer.global_step` counts more."""
    plain = {name: float(value) for name, value in values.items()}
    for logger in module.loggers:
        logger.log_metrics({**plain, "student_updates": student_updates}, student_updates)


def log_progress(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Show values on the progress bar; as numbers, for logged tensors are read at every item."""
    trainer.progress_bar_metrics.update({name: float(value) for name, value in values.items()})


def log_evaluation(
    module: LightningModule, values: Mapping[str, float], student_updates: int
) -> None:
    """Send what `Evaluator.compute` returned to callbacks, progress bar and loggers."""
    metrics = {f"val/{name}": value for name, value in values.items()}
    module.log_dict(metrics, logger=False)
    short = {"agreement": "agree", "student_accuracy": "acc"}
    log_progress(module.trainer, {short[k]: v for k, v in values.items() if k in short})
    log_metrics(module, {**metrics, "epoch": module.current_epoch}, student_updates)


def should_log(trainer: Trainer, count: int) -> bool:
    """Whether the `count`-th step of something is one to log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and count % every == 0  # 0 is Lightning's never


def show_synthesis_step(trainer: Trainer, step: int, steps: int) -> None:
    """Tell the progress bar how far a round is, if it can show that."""
    show = getattr(trainer.progress_bar_callback, "show_step", None)
    if show is not None:
        show(trainer, step, steps)
