"""The student's side of distillation: its loss, its optimizer and schedule, and one update."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from lightning import LightningModule
from pydantic import PositiveFloat, PositiveInt
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torchmetrics import MeanMetric

from nayer_pl.distillation import reporting
from nayer_pl.distillation.guards import NonFiniteGuard
from nayer_pl.errors import DivergenceError, InputError
from nayer_pl.losses.distillation import KLDivergence, StudentLoss
from nayer_pl.runtime.options import checked

MOMENTUM_SGD = partial(SGD, lr=0.2, momentum=0.9, weight_decay=1e-4, fused=True)
COSINE = partial(CosineAnnealingLR, eta_min=2e-4)


class StudentUpdater(nn.Module):
    """The student's loss, optimizer and schedule; its mean loss, and the guard of its steps.

    Args:
        loss: (student logits, teacher logits, labels) -> scalar that the student minimizes.
        optimizer: Parameters -> optimizer; a partial of one of torch's classes.
        scheduler: Optimizer -> learning-rate schedule over distillation epochs; likewise. Its
            length is filled in (see `build_scheduler`).

    Raises:
        InputError: The optimizer cannot be built.

    Example:
        >>> updater = StudentUpdater()
        >>> optimizer, scheduler = updater.configure(nn.Linear(4, 2), epochs=100)
        >>> scheduler.T_max
        100
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


def check_optimizer(optimizer: Callable[..., Any]) -> None:
    """Raise an InputError if `optimizer`, a partial of one of torch's classes, cannot be built."""
    try:
        optimizer([nn.Parameter(torch.zeros(1))])
    except Exception as error:  # torch's own, about any of its options
        reason = str(error).rstrip(".")
        raise InputError(f"The optimizer cannot be built: {reason}.") from error


LENGTHS = ("T_max", "total_iters", "total_steps", "epochs")
"""How schedulers call the number of their steps."""


def build_scheduler(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, epochs: int
) -> LRScheduler:
    """Build a scheduler that steps once per distillation epoch and spans all of them.

    A scheduler whose signature has none of `LENGTHS` (StepLR, ExponentialLR), or whose partial
    binds one of them already, takes the optimizer alone.

    Args:
        scheduler: one of torch's scheduler classes or any function like them; a partial with all
            of its options but the optimizer and the length.
        optimizer: whose learning rate is scheduled.
        epochs: number of distillation epochs.

    Example:
        >>> from functools import partial
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.2)
        >>> cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, eta_min=1e-4)
        >>> build_scheduler(cosine, sgd, epochs=200).T_max
        200
    """
    bound = getattr(scheduler, "keywords", {})
    names = [name for name in LENGTHS if name in inspect.signature(scheduler).parameters]
    if not names or any(name in bound for name in LENGTHS):
        return scheduler(optimizer)
    return scheduler(optimizer, **{names[0]: epochs})


@checked
def step_decay(
    optimizer: Optimizer,
    epochs: PositiveInt,
    milestones: Sequence[Annotated[float, Ge(0), Le(1)]],
    decay: PositiveFloat,
) -> MultiStepLR:
    """Multiply the learning rate by `decay` after each of these shares of the epochs.

    Args:
        optimizer: whose learning rate falls.
        epochs: number of distillation epochs.
        milestones: shares of the epochs, from 0 to 1; each is rounded to a whole epoch.
        decay: factor at each milestone.

    Raises:
        OptionError: a share outside of 0 to 1, or a decay that is not above 0.

    Example:
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.2)
        >>> dict(step_decay(sgd, 500, [0.4, 0.8], decay=0.1).milestones)
        {200: 1, 400: 1}
    """
    return MultiStepLR(optimizer, [round(share * epochs) for share in milestones], decay)
