"""The plan of an epoch: which rounds and which distillation batches, in which order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nayer_pl.errors import InputError


class SynthesisRound(NamedTuple):
    """Make one batch of images for these labels and bank it."""

    targets: Tensor
    """Wanted labels, int64 [round_size]."""
    warm_up: bool
    """The student has learned nothing yet: its opinion does not count."""


class DistillationBatch(NamedTuple):
    """Banked images for one step of the student."""

    images: Tensor
    """uint8 [batch_size, C, H, W] from the bank; floats in [0, 1] once on the device."""
    labels: Tensor
    """The labels that the images were made for, int64 [batch_size]."""


WorkItem = SynthesisRound | DistillationBatch


@dataclass(frozen=True)
class Plan:
    """How much is synthesised and distilled (NAYER, section 4.1).

    A warm-up epoch is `warmup_rounds` rounds. A distillation epoch is `rounds_per_epoch` rounds,
    then `kd_steps` batches.

    Args:
        epochs: distillation epochs, the paper's E.
        warmup_epochs: epochs before them.
        warmup_rounds: synthesis rounds in each warm-up epoch.
        rounds_per_epoch: synthesis rounds in each distillation epoch.
        kd_steps: distillation batches in each distillation epoch.
        round_size: images made in one round.
        batch_size: images in a distillation batch.
    """

    epochs: int = 100
    warmup_epochs: int = 20
    warmup_rounds: int = 10
    rounds_per_epoch: int = 2
    kd_steps: int = 400
    round_size: int = 400
    batch_size: int = 512

    def __post_init__(self) -> None:
        for name in ("epochs", "kd_steps", "round_size", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"plan.{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("warmup_epochs", "warmup_rounds", "rounds_per_epoch"):
            if getattr(self, name) < 0:
                raise InputError(f"plan.{name} must not be negative: {getattr(self, name)}.")
        if not (self.warmup_epochs * self.warmup_rounds or self.rounds_per_epoch):
            raise InputError("The plan makes no images: give it a warm-up or rounds per epoch.")
        if self.warmup_epochs and not self.warmup_rounds:
            raise InputError("Warm-up epochs without rounds: set plan.warmup_epochs=0 instead.")

    @property
    def max_epochs(self) -> int:
        """All epochs, warm-up and distillation."""
        return self.warmup_epochs + self.epochs

    @property
    def images(self) -> int:
        """Images made in the whole run."""
        rounds = self.warmup_epochs * self.warmup_rounds + self.epochs * self.rounds_per_epoch
        return rounds * self.round_size

    def rounds_in(self, epoch: int) -> int:
        """Synthesis rounds of epoch 0, 1, ..."""
        return self.warmup_rounds if self.is_warm_up(epoch) else self.rounds_per_epoch

    def is_warm_up(self, epoch: int) -> bool:
        """Whether this epoch only fills the bank."""
        return epoch < self.warmup_epochs


class EpochPlan:
    """The work items of one epoch, in order, with a length (an item is made when it is due).

    Args:
        plan: how much.
        epoch: which epoch, from 0.
        targets: makes the labels of a round.
        batch: draws a distillation batch; called after the epoch's rounds were banked.
    """

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        targets: Callable[[], Tensor],
        batch: Callable[[], DistillationBatch],
    ) -> None:
        self.warm_up = plan.is_warm_up(epoch)
        self.rounds = plan.rounds_in(epoch)
        self.kd_steps = 0 if self.warm_up else plan.kd_steps
        self._targets, self._batch = targets, batch

    def __len__(self) -> int:
        return self.rounds + self.kd_steps

    def __iter__(self) -> Iterator[WorkItem]:
        for _ in range(self.rounds):
            yield SynthesisRound(self._targets(), self.warm_up)
        for _ in range(self.kd_steps):
            yield self._batch()


def round_targets(num_classes: int, round_size: int, rng: torch.Generator | None = None) -> Tensor:
    """Labels of one round, int64 [round_size]: full sets of all classes, each set shuffled.

    A set that does not fit whole is cut, so every class appears floor(size / classes) times, and
    a random part of them once more.
    """
    sets = -(-round_size // num_classes)
    order = torch.rand(sets, num_classes, generator=rng).argsort(dim=1)
    return order.flatten()[:round_size]
