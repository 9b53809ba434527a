"""Plain knowledge distillation on real images: what data-free methods are measured against.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.distillation.base import TeacherStudentModule
from nayer_pl.distillation.guards import NonFiniteGuard
from nayer_pl.distillation.reporting import count_parameters, validation_metrics
from nayer_pl.errors import InputError
from nayer_pl.losses.distillation import KLDivergence
from nayer_pl.methods.supervised import NESTEROV_SGD, schedule_steps
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.registry import described
from nayer_pl.networks.teacher import FrozenTeacher
from nayer_pl.networks.weights import fingerprint
from nayer_pl.runtime.options import checked


class KnowledgeDistillation(TeacherStudentModule):
    """The student learns what the teacher says about its own training images.

    By default without the labels, as in the data-free methods: only the images differ.

    Args:
        teacher: Trained classifier; frozen here.
        student: Classifier with as many outputs.
        image_shape: (C, H, W) of the images.
        student_loss: (student logits, teacher logits, labels) -> scalar.
        optimizer: Parameters -> optimizer of the student.
        scheduler: Optimizer -> its learning-rate schedule over all steps.
        check_teacher: Stop at once if the teacher is no better than guessing.

    Raises:
        InputError: Teacher and student share weights, or an option is out of range.

    Example:
        >>> from nayer_pl.networks import create_model
        >>> teacher = Classifier(create_model("wrn16_2", num_classes=3), mean=[0.5], std=[0.2])
        >>> student = Classifier(create_model("wrn16_1", num_classes=3))
        >>> KnowledgeDistillation(teacher, student, (3, 32, 32)).updater.loss.temperature
        20.0
    """

    @checked
    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        student_loss: Callable[..., Any] = KLDivergence(),
        optimizer: Callable[..., Any] = NESTEROV_SGD,
        scheduler: Callable[..., Any] = CosineAnnealingLR,
        check_teacher: bool = True,
    ) -> None:
        frozen_teacher = FrozenTeacher(teacher)
        super().__init__(frozen_teacher, student, student_loss, optimizer, scheduler, check_teacher)
        self.image_shape = tuple(image_shape)
        self.updater.guard = NonFiniteGuard("training loss", "step")
        self._loss = torch.zeros(())

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The student's loss on images [B, C, H, W] in [0, 1] and labels [B]."""
        images, labels = batch
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        loss = self.updater.loss(self.student(images), teacher_logits, labels)
        self._loss = loss.detach()
        self.updater.mean_loss.update(self._loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep a loss or gradient that is not finite away from the student."""
        step = self.trainer.global_step + 1
        self.updater.guard.watch_step(self, optimizer, self.student, self._loss, step)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss."""
        loss = self.updater.take_mean()
        if loss is not None:
            self.log("train/loss", loss, prog_bar=True)

    # Lightning

    def setup(self, stage: str) -> None:
        """Choose the faster layout for convolutions."""
        self.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule that is stepped after every batch."""
        return schedule_steps(self, self.updater, self.student)

    def on_fit_start(self) -> None:
        """Check that the parts fit, and ask the teacher about the evaluation images, once."""
        classes = self.datamodule.num_classes or self.teacher.classifier.num_classes(
            self.image_shape
        )
        self.prepare_networks(self.image_shape, classes)

    # What checkpoints, callbacks and the application ask

    def run_identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this run."""
        teacher = self.teacher.classifier
        return {
            "method": type(self).__name__,
            "network": described(self.student),
            "teacher": f"{described(teacher)} (weights {fingerprint(teacher)})",
        }

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary."""
        names = "teacher_accuracy", "student_accuracy", "agreement"
        return {
            **validation_metrics(self.trainer, *names),
            "teacher_parameters": count_parameters(self.teacher.classifier),
            "student_parameters": count_parameters(self.student),
            "student_updates": self.student_updates,
        }

    @property
    def student_updates(self) -> int:  # type: ignore[override]
        """Steps of its optimizer, the only one."""
        return self.trainer.global_step

    @property
    def datamodule(self) -> RealDataModule:
        """The real images."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, RealDataModule):
            raise InputError(
                "Knowledge distillation trains on a RealDataModule: trainer.fit(method, "
                "datamodule)."
            )
        return module
