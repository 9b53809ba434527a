"""What a run reports: to the loggers, to the progress bar, and in its summary."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.errors import DivergenceError
from nayer_pl.runtime import distributed


def log_metrics(module: Any, values: Mapping[str, Any]) -> None:
    """Send values to every logger, against student updates: `trainer.global_step` counts more."""
    updates = module.student_updates
    plain = {name: float(value) for name, value in values.items()}
    for logger in module.loggers:
        logger.log_metrics({**plain, "student_updates": updates}, updates)


def log_round(module: Any, images: Tensor, labels: Tensor, terms: Mapping[str, float]) -> None:
    """Report a synthesis round: banked images and labels, and the loss terms of its best step."""
    values, agreement = {f"synthesis/{name}": value for name, value in terms.items()}, None
    if module.synthesizer.class_conditional:
        agreement = float((module.teacher.predict(images) == labels).float().mean())
        values["synthesis/label_agreement"] = agreement
    module.collapse.update(images, agreement, module.datamodule.num_classes)
    module.trainer.progress_bar_metrics["synthesis"] = terms["loss"]
    counts = {"synthesis/round": module.rounds, "bank/images": len(module.datamodule.bank)}
    log_metrics(module, values | counts)


def log_student_loss(module: Any) -> None:
    """Log the student's mean loss since the last time; reading it waits for the device.

    Raises:
        DivergenceError: It is not finite.
    """
    loss = module.updater.take_mean()
    if loss is None:
        return
    if not math.isfinite(loss):
        raise DivergenceError(
            f"The distillation loss became {loss} before student update {module.student_updates} "
            f"(epoch {module.current_epoch}); the last checkpoint is from before that. Lower the "
            "learning rate (optimizer.lr)."
        )
    module.trainer.progress_bar_metrics["kd"] = loss  # `self.log` would read it at every item
    lr = module.trainer.optimizers[0].param_groups[0]["lr"]
    log_metrics(module, {"distillation/loss": loss, "distillation/learning_rate": lr})


def log_evaluation(module: Any, values: Mapping[str, float]) -> None:
    """Send what `Evaluator.compute` returned to callbacks, progress bar and loggers."""
    metrics = {f"val/{name}": value for name, value in values.items()}
    module.log_dict(metrics, logger=False)
    short = {"agreement": "agree", "student_accuracy": "acc"}
    shown = {short[name]: value for name, value in values.items() if name in short}
    module.trainer.progress_bar_metrics.update(shown)
    log_metrics(module, {**metrics, "epoch": module.current_epoch})


def should_log(trainer: Trainer, count: int) -> bool:
    """Whether the `count`-th step of something is one to log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and count % every == 0  # 0 is Lightning's never


def show_step(trainer: Trainer, step: int, steps: int) -> None:
    """Show how far a synthesis round is, if the progress bar can."""
    show = getattr(trainer.progress_bar_callback, "show_step", None)
    if show is not None:
        show(trainer, step, steps)


def collect_results(module: Any) -> dict[str, Any]:
    """What a `DataFreeDistillation` reached, over all ranks; None where nothing was measured.

    To be called on every rank while the trainer is still running.
    """
    bank, device = module.datamodule.bank, module.device
    kept = distributed.all_reduce_sum(len(bank), device)

    def mean(value: float) -> float:
        return distributed.all_reduce_sum(value * len(bank), device) / kept

    agreement = None
    if module.synthesizer.class_conditional:
        agreement = mean(label_agreement(bank, module.teacher.classifier))
    return {
        **validation_metrics(module.trainer, "teacher_accuracy", "student_accuracy", "agreement"),
        "teacher_parameters": count_parameters(module.teacher.classifier),
        "student_parameters": count_parameters(module.student),
        "student_updates": module.student_updates,
        "images_banked": int(distributed.all_reduce_sum(bank.num_added, device)),
        "images_kept": int(kept),
        "synthesis_steps": int(distributed.all_reduce_sum(module.synthesis_steps, device)),
        "bank_bytes": int(distributed.all_reduce_sum(bank.nbytes, device)),
        "synthesis_loss": float(module.synthesis_loss.compute()),
        "label_agreement": agreement,
        "diversity": mean(within_class_distance(bank)),
    }


def validation_metrics(trainer: Trainer, *names: str) -> dict[str, float | None]:
    """The last evaluation's metrics of these names; None where nothing was evaluated."""
    found = trainer.callback_metrics
    return {name: float(found[f"val/{name}"]) if f"val/{name}" in found else None for name in names}


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def label_agreement(
    bank: MemoryBank, teacher: nn.Module, max_images: int = 5000, batch_size: int = 500
) -> float:
    """Share of `max_images`, spread over the bank, in which the teacher sees their label."""
    device = next(teacher.parameters()).device
    chosen = _spread(bank, max_images)
    right = torch.zeros((), device=device)
    for index in chosen.split(batch_size):
        images = bank.images[index].to(device, torch.float32) / 255
        right += (teacher(images).argmax(1) == bank.labels[index].to(device)).sum()
    return float(right / len(chosen))


def within_class_distance(bank: MemoryBank, max_images: int = 5000) -> float:
    """Diversity: root mean square difference of a pixel between two images of one class.

    In units of [0, 1]; the mean over classes with two or more images, or 0.0 if there are none.
    Over all pairs of n images it is sqrt(2 n / (n - 1) * variance), so no pair is ever formed.
    Only `max_images` are compared, evenly spread over the bank.
    """
    chosen = _spread(bank, max_images)
    images, labels = bank.images[chosen].flatten(1), bank.labels[chosen]
    distances: list[Tensor] = [
        (2 * (images[labels == label] / 255).var(dim=0).mean()).sqrt()
        for label in labels.unique()
        if (labels == label).sum() > 1
    ]
    return float(torch.stack(distances).mean()) if distances else 0.0


def _spread(bank: MemoryBank, count: int) -> Tensor:
    """Positions of up to `count` images, evenly spread over the bank."""
    return torch.linspace(0, len(bank) - 1, min(count, len(bank))).long().to(bank.device)
