"""What a run reports: to the loggers, to the progress bar, and in its summary."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.runtime import distributed


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


def synthesis_display(trainer: Trainer) -> Callable[[Trainer, int, int], None] | None:
    """What shows how far a round is, if the progress bar can: called with step and steps."""
    return getattr(trainer.progress_bar_callback, "show_step", None)


def collect_results(module: Any) -> dict[str, Any]:
    """Accuracies and counts over all ranks; None where there was nothing real to measure on.

    To be called on every rank while the trainer is still running.

    Args:
        module: A `DataFreeDistillation` that has been trained.
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
    """Share of banked images in which the teacher sees the label they were made for.

    Args:
        bank: Holds at least one image.
        teacher: Images in [0, 1] -> logits.
        max_images: The teacher is asked about this many images, evenly spread over the bank.
        batch_size: Images per forward pass.
    """
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

    Args:
        bank: Holds at least one image.
        max_images: The number of images that are compared, evenly spread over the bank.
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
