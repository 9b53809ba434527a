"""What learns: its loss, its optimizer, and schedules that know how long a run is."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torchmetrics import MeanMetric

from nayer_pl.distillation.guards import NonFiniteGuard
from nayer_pl.errors import InputError
from nayer_pl.runtime.options import checked

MOMENTUM_SGD = partial(SGD, lr=0.2, momentum=0.9, weight_decay=1e-4, fused=True)
COSINE = partial(CosineAnnealingLR, eta_min=2e-4)


class StudentUpdater(nn.Module):
    """The student's loss, optimizer and schedule; its mean loss, and the guard of its steps.

    Args:
        loss: (student logits, teacher logits, labels) -> scalar that the student minimizes.
        optimizer: Parameters -> optimizer; a partial of one of torch's classes.
        scheduler: Optimizer -> learning-rate schedule; likewise. Its length is filled in.

    Raises:
        InputError: The optimizer cannot be built.

    Example:
        >>> updater = StudentUpdater(nn.MSELoss(), MOMENTUM_SGD, COSINE)
        >>> optimizer, scheduler = updater.configure(nn.Linear(4, 2), length=100)
        >>> scheduler.T_max
        100
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: Callable[..., Any],
        scheduler: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.loss, self.optimizer, self.scheduler = loss, optimizer, scheduler
        self.mean_loss = MeanMetric(nan_strategy="disable")  # NaN must show
        self.guard = NonFiniteGuard()
        try:
            optimizer([nn.Parameter(torch.zeros(1))])
        except Exception as error:  # torch's own, about any of its options
            reason = str(error).rstrip(".")
            raise InputError(f"The optimizer cannot be built: {reason}.") from error

    def configure(self, student: nn.Module, length: int) -> tuple[Optimizer, Any]:
        """The optimizer, and its schedule of so many steps."""
        optimizer = self.optimizer(student.parameters())
        return optimizer, build_scheduler(self.scheduler, optimizer, length)

    def take_mean(self) -> float | None:
        """The mean loss since the last call, which waits for the device; None if there was none."""
        if not self.mean_loss.update_count:
            return None
        loss = float(self.mean_loss.compute())
        self.mean_loss.reset()
        self.guard.check()
        return loss


LENGTHS = ("T_max", "total_iters", "total_steps", "epochs")  # names of the number of steps


def build_scheduler(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, length: int
) -> LRScheduler:
    """Build a scheduler that spans so many steps: epochs of distillation, or batches.

    It is one of torch's classes or any function like them; a partial with all of its options but
    the optimizer and the length. If its signature has none of `LENGTHS` (StepLR, ExponentialLR), or
    the partial binds one of them already, it takes the optimizer alone.

    Example:
        >>> from functools import partial
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.2)
        >>> cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, eta_min=1e-4)
        >>> build_scheduler(cosine, sgd, length=200).T_max
        200
    """
    bound = getattr(scheduler, "keywords", {})
    names = [name for name in LENGTHS if name in inspect.signature(scheduler).parameters]
    if not names or any(name in bound for name in LENGTHS):
        return scheduler(optimizer)
    return scheduler(optimizer, **{names[0]: length})


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
