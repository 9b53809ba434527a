"""The student's side of distillation: its loss, its optimizer and schedule, and one update."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanMetric

from nayer_pl.distillation import reporting
from nayer_pl.distillation.guards import NonFiniteGuard, gradient_norm
from nayer_pl.distillation.schedules import build_scheduler
from nayer_pl.errors import DivergenceError, InputError
from nayer_pl.losses.distillation import KLDivergence, StudentLoss

MOMENTUM_SGD = partial(SGD, lr=0.2, momentum=0.9, weight_decay=1e-4, fused=True)
COSINE = partial(CosineAnnealingLR, eta_min=2e-4)


class StudentUpdater(nn.Module):
    """Lets a student learn from its teacher's answers, one batch at a time.

    Args:
        loss: (student logits, teacher logits, labels) -> scalar that the student minimizes.
        optimizer: Parameters -> optimizer; a partial of one of torch's classes.
        scheduler: Optimizer -> learning-rate schedule over distillation epochs; likewise. Its
            length is filled in (see `build_scheduler`).

    Raises:
        InputError: The optimizer cannot be built.

    Example:
        >>> updater = StudentUpdater()
        >>> student, teacher = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> updater.objective(student, teacher, torch.rand(8, 4)).ndim
        0
    """

    def __init__(
        self,
        loss: StudentLoss = KLDivergence(),
        optimizer: Callable[..., Any] = MOMENTUM_SGD,
        scheduler: Callable[..., Any] = COSINE,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer)
        self.loss, self.optimizer, self.scheduler = loss, optimizer, scheduler
        # A mean that leaves NaN out would hide what must stop the run.
        self.mean_loss = MeanMetric(nan_strategy="disable")
        self.guard = NonFiniteGuard()

    def configure(self, student: nn.Module, epochs: int) -> tuple[Optimizer, Any]:
        """The student's optimizer, and its schedule over this number of distillation epochs."""
        optimizer = self.optimizer(student.parameters())
        return optimizer, build_scheduler(self.scheduler, optimizer, epochs)

    def objective(
        self, student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """What the student minimizes on a batch, a scalar.

        Args:
            student: Images -> logits.
            teacher: Images -> logits.
            images: In [0, 1], [B, C, H, W].
            labels: Labels of the images, [B]; None takes the teacher's answers.
        """
        with torch.no_grad():
            teacher_logits = teacher(images)
        labels = teacher_logits.argmax(1) if labels is None else labels
        return self.loss(student(images), teacher_logits, labels)

    def step(
        self,
        module: LightningModule,
        student: nn.Module,
        optimizer: LightningOptimizer,
        loss: Tensor,
        update: int,
    ) -> None:
        """Take one step down the loss, unless loss or gradient are not finite.

        Args:
            module: Takes the gradient, and scales it where precision wants that.
            student: What learns.
            optimizer: The student's.
            loss: Of this batch, a scalar.
            update: Number of this update, from 1.
        """
        optimizer.zero_grad()
        module.manual_backward(loss)
        if not scales_losses(module):
            norm = gradient_norm(student.parameters())
            self.guard.before_step(optimizer.optimizer, loss.detach(), norm, update)
        optimizer.step()
        self.mean_loss.update(loss.detach())

    def report(self, module: LightningModule, lr: float, updates: int) -> None:
        """Log the mean loss since the last report, which waits for the device.

        Raises:
            DivergenceError: The mean is not finite.
        """
        if not self.mean_loss.update_count:
            return
        value = float(self.mean_loss.compute())
        self.mean_loss.reset()
        self.guard.check()
        if not math.isfinite(value):
            raise DivergenceError(
                f"The distillation loss became {value} before student update {updates} (epoch "
                f"{module.current_epoch}); the last checkpoint is from before that. Lower the "
                "learning rate (optimizer.lr)."
            )
        reporting.log_progress(module.trainer, {"kd": value})
        values = {"distillation/loss": value, "distillation/learning_rate": lr}
        reporting.log_metrics(module, values, updates)


def scales_losses(module: LightningModule) -> bool:
    """Whether scaled gradients may overflow, and the gradient scaler handles it."""
    return getattr(module.trainer.precision_plugin, "scaler", None) is not None


def check_optimizer(optimizer: Callable[..., Any]) -> None:
    """Raise an InputError if `optimizer`, a partial of one of torch's classes, cannot be built."""
    try:
        optimizer([nn.Parameter(torch.zeros(1))])
    except Exception as error:  # torch's own, about any of its options
        reason = str(error).rstrip(".")
        raise InputError(f"The optimizer cannot be built: {reason}.") from error
