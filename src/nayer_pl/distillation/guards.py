"""Guards of a run: numbers that are not finite stop it, and a collapse of synthesis is reported."""

import logging
import math
from collections.abc import Iterable, Mapping

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from nayer_pl.errors import DivergenceError

log = logging.getLogger(__name__)

GRADIENT = "gradient"  # the name of its norm among the terms of a round
MIN_PIXEL_STD = 0.02  # mean over the pixels of a round, in [0, 1]: five of 255 steps
COLLAPSE_ROUNDS = 3  # in a row


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on their device; NaN if one of them is."""
    return get_total_norm([each.grad for each in parameters if each.grad is not None])


def scales_losses(module: LightningModule) -> bool:
    """Whether scaled gradients may overflow, and the gradient scaler handles it."""
    return getattr(module.trainer.precision_plugin, "scaler", None) is not None


def describe_nonfinite(terms: Mapping[str, Tensor], where: str, lr_name: str) -> str | None:
    """Describe the first of a round's loss terms, each [steps], that is NaN or infinite."""
    bad = ~torch.stack(list(terms.values())).isfinite().all(0)
    if not bad.any():
        return None
    step = int(bad.int().argmax())
    culprits = [name for name, values in terms.items() if not values[step].isfinite()]
    # A bad term makes the loss bad, and that the gradient.
    name = min(culprits, key=lambda name: (name == GRADIENT, name == "loss"))
    what = "gradient of the synthesis loss" if name == GRADIENT else f"synthesis loss term '{name}'"
    return (
        f"The {what} became {terms[name][step]} at step {step + 1} of {where}. The images of this "
        f"round were not banked; lower {lr_name} or the weight of this term."
    )


class NonFiniteGuard:
    """Keeps a gradient that is not finite away from the network that learns.

    On a CPU the run stops at once. On a GPU asking would wait for it at every step, so the (fused)
    optimizer skips such a step, as loss scaling makes it do, and `check` reports it later.

    Args:
        loss: Name of the loss in messages.
        step: Name of a step in messages.

    Example:
        >>> guard = NonFiniteGuard()
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> guard.before_step(sgd, torch.tensor(1.0), torch.tensor(2.0), update=1)
        >>> guard.check()
    """

    SYNCHRONOUS = ("cpu",)  # devices on which reading a value costs nothing

    def __init__(self, loss: str = "distillation loss", step: str = "student update") -> None:
        self.loss, self.step = loss, step
        # Number, loss and gradient norm of the first bad update; zeros if there is none.
        self._first_bad: Tensor | None = None

    def watch_step(
        self,
        module: LightningModule,
        optimizer: Optimizer,
        network: nn.Module,
        loss: Tensor,
        update: int,
    ) -> None:
        """`before_step` of a network in training, unless the gradient scaler does the same."""
        if not scales_losses(module):
            self.before_step(optimizer, loss, gradient_norm(network.parameters()), update)

    def before_step(self, optimizer: Optimizer, loss: Tensor, norm: Tensor, update: int) -> None:
        """Look at the loss and gradient norm, scalars, of the update that is about to be made."""
        values = torch.stack([torch.full_like(loss, update), loss, norm])
        bad = ~values.isfinite().all()
        if self._first_bad is None:
            self._first_bad = torch.zeros_like(values)
        is_first = bad & (self._first_bad[0] == 0)
        self._first_bad = torch.where(is_first, values, self._first_bad)
        if bad.device.type in self.SYNCHRONOUS:
            self.check()
        elif optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]

    def check(self) -> None:
        """Wait for the device, and stop if a step was bad.

        Raises:
            DivergenceError: A loss or gradient was not finite.
        """
        update, loss, norm = (0, 0, 0) if self._first_bad is None else self._first_bad.tolist()
        if not update:
            return
        self._first_bad = None  # the same object may be trained again
        what = f"{self.loss} became {loss}"
        if math.isfinite(loss):
            what = f"gradient of the {self.loss} became {norm}"
        raise DivergenceError(
            f"The {what} at {self.step} {update:.0f}, which was skipped; the run's checkpoints, if "
            "there are any yet, are from before that. Start a new run with a lower learning rate "
            "(optimizer.lr)."
        )


class CollapseMonitor:
    """Warns, once for each kind, when images are all alike or do not show their labels.

    Example:
        >>> CollapseMonitor("generator_lr").update(torch.rand(8, 1, 4, 4), 0.9, num_classes=10)
    """

    def __init__(self, lr_name: str) -> None:
        self.lr_name = lr_name
        self._streak = {"alike": 0, "labels": 0}

    def update(self, images: Tensor, agreement: float | None, num_classes: int) -> None:
        """Look at a round's images [B, C, H, W] in [0, 1].

        `agreement` is the share of them in which the teacher sees the target label; None without
        target labels.
        """
        std = float(images.float().std(dim=0, correction=0).mean())
        if len(images) > 1 and self._lasts("alike", std < MIN_PIXEL_STD):
            log.warning(
                "Synthesis has collapsed: in the last %s rounds that were examined, all images "
                "were nearly the same (a pixel varies by %.3f of 1). Lower %s, or let a round take "
                "fewer steps.",
                COLLAPSE_ROUNDS, std, self.lr_name,
            )  # fmt: skip
        if agreement is None:
            return
        chance = 1 / num_classes
        if self._lasts("labels", agreement <= 1.2 * chance):
            log.warning(
                "The teacher does not see the target labels: in the last %s rounds in %.0f %% of "
                "the images, and guessing would give %.0f %%. Raise ce_weight against the other "
                "weights, or take more steps in a round; and check that class names, mean and std "
                "are the teacher's.",
                COLLAPSE_ROUNDS, 100 * agreement, 100 * chance,
            )  # fmt: skip

    def _lasts(self, kind: str, bad: bool) -> bool:
        self._streak[kind] = self._streak[kind] + 1 if bad else 0
        return self._streak[kind] == COLLAPSE_ROUNDS
