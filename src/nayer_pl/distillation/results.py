"""What a finished run reached, for its summary."""

from typing import Any

from lightning import Trainer

from nayer_pl.distillation.quality import label_agreement, within_class_distance
from nayer_pl.distillation.state import DistillationState
from nayer_pl.runtime import distributed


def sum_up(method: DistillationState, wants_labels: bool) -> dict[str, Any]:
    """Accuracies and counts over all ranks; None where there was nothing real to measure on.

    To be called on every rank while the trainer is still running.

    Args:
        method: that has been trained.
        wants_labels: whether its images were made for a label each, that the teacher should see.
    """
    bank = method.datamodule.bank
    held = distributed.all_reduce_sum(len(bank), method.device)

    def mean(value: float) -> float:
        return distributed.all_reduce_sum(value * len(bank), method.device) / held

    return {
        **measured(method.trainer, "teacher_accuracy", "student_accuracy", "agreement"),
        "teacher_parameters": sum(p.numel() for p in method.teacher.parameters()),
        "student_parameters": sum(p.numel() for p in method.student.parameters()),
        "student_updates": method.student_updates,
        "images_banked": int(distributed.all_reduce_sum(bank.num_added, method.device)),
        "images_kept": int(held),
        "synthesis_steps": int(distributed.all_reduce_sum(method.synthesis_steps, method.device)),
        "bank_bytes": int(distributed.all_reduce_sum(bank.nbytes, method.device)),
        "synthesis_loss": float(method.synthesis_loss.compute()),
        "label_agreement": mean(label_agreement(bank, method.teacher)) if wants_labels else None,
        "diversity": mean(within_class_distance(bank)),
    }


def measured(trainer: Trainer, *names: str) -> dict[str, float | None]:
    """What the last evaluation found under these names; None where nothing was evaluated."""
    found = trainer.callback_metrics
    return {name: float(found[f"val/{name}"]) if f"val/{name}" in found else None for name in names}
