"""A number that is not finite stops the run before it does harm."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from nayer_pl.errors import DivergenceError

GRADIENT = "gradient"  # the name of its norm among the terms of a round


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on their device; NaN if one of them is."""
    return get_total_norm([each.grad for each in parameters if each.grad is not None])


def not_finite(steps: Tensor, names: list[str], where: str, rate: str) -> str | None:
    """What to tell about the first term of a round, [steps, terms], that is NaN or infinite.

    Args:
        steps: every term at every step.
        names: of the terms.
        where: which round.
        rate: the option that is the learning rate of what makes the images.
    """
    bad = ~steps.isfinite()
    if not bad.any():
        return None
    step = int(bad.any(dim=1).int().argmax())
    culprits = [name for name, flag in zip(names, bad[step], strict=True) if flag]
    # A bad term makes the loss bad, and that the gradient.
    terms = [name for name in culprits if name not in ("loss", GRADIENT)]
    name = (terms or [name for name in ("loss", GRADIENT) if name in culprits])[0]
    what = "gradient of the synthesis loss" if name == GRADIENT else f"synthesis loss term '{name}'"
    return (
        f"The {what} became {steps[step, names.index(name)]} at step {step + 1} of {where}. The "
        f"images of this round were not banked; lower {rate} or the weight of this term."
    )


class NonFiniteGuard:
    """Keeps a gradient that is not finite away from the student.

    On a CPU the run stops at once. On a GPU asking would wait for it at every step, so the (fused)
    optimizer leaves such a step out, as loss scaling makes it do, and `check` tells later.

    Args:
        loss: what it is called.
        step: what a step is called.
    """

    WAITS_FOR_NOTHING = ("cpu",)  # devices

    def __init__(self, loss: str = "distillation loss", step: str = "student update") -> None:
        self.loss, self.step = loss, step
        self._first_bad: Tensor | None = None  # a student update; 0 for none
        self._values: Tensor | None = None  # its loss and the norm of its gradient

    def before_step(self, optimizer: Optimizer, loss: Tensor, norm: Tensor, update: int) -> None:
        """Look at one step of the student.

        Args:
            optimizer: about to take the step.
            loss: of this step, a scalar.
            norm: of its gradient, a scalar.
            update: the number of this student update, from 1.

        Raises:
            DivergenceError: see `check`.
        """
        values = torch.stack([loss, norm])
        bad = ~values.isfinite().all()
        if self._first_bad is None or self._values is None:
            self._first_bad, self._values = bad * update, values
        else:
            first = bad & (self._first_bad == 0)
            self._first_bad = torch.where(first, update, self._first_bad)
            self._values = torch.where(first, values, self._values)
        if bad.device.type in self.WAITS_FOR_NOTHING:
            self.check()
        elif optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]

    def check(self) -> None:
        """Wait for the device, and stop if a step was bad.

        Raises:
            DivergenceError: a loss or gradient was not finite.
        """
        if self._first_bad is None or self._values is None or not int(self._first_bad):
            return
        loss, norm, first = *self._values.tolist(), int(self._first_bad)
        self._first_bad = self._values = None  # the same object may be trained again
        what = f"{self.loss} became {loss}"
        if math.isfinite(loss):
            what = f"gradient of the {self.loss} became {norm}"
        raise DivergenceError(
            f"The {what} at {self.step} {first}, which was not made; the run's "
            "checkpoints, if there are any yet, are from before that. Start a new run with a lower "
            "model.learning_rate."
        )
