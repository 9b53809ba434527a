"""The plan of a run: how many rounds of which labels, and how many distillation batches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nayer_pl.errors import InputError


class SynthesisRound(NamedTuple):
    """Make one batch of images for these labels and bank it."""

    targets: Tensor
    """Wanted labels, int64 [round_size]; none where only other ranks have a round to make."""
    warm_up: bool
    """The student has learned nothing yet: its opinion does not count."""


class DistillationBatch(NamedTuple):
    """Banked images for one step of the student; each rank has its share of the batch."""

    images: Tensor
    """uint8 [share, C, H, W] from the bank; floats in [0, 1] once on the device."""
    labels: Tensor
    """The labels that the images were made for, int64 [share]."""


WorkItem = SynthesisRound | DistillationBatch


@dataclass(frozen=True)
class Plan:
    """How much is synthesized and distilled (NAYER, section 4.1).

    A warm-up epoch is `warmup_rounds` rounds. A distillation epoch is `rounds_per_epoch` rounds,
    then `kd_steps` batches; or, where generator and student take turns, both in turn. Sizes are
    totals, whatever the number of ranks: the rounds are shared out among them, and every
    distillation batch is. Where they take turns, every rank makes its part of every round, so that
    a turn is the same number of steps on any number of ranks.

    Args:
        epochs: distillation epochs, the paper's E.
        warmup_epochs: epochs before them.
        warmup_rounds: synthesis rounds in each warm-up epoch.
        rounds_per_epoch: synthesis rounds in each distillation epoch.
        kd_steps: distillation batches in each distillation epoch.
        round_size: images made in one round.
        batch_size: images in a distillation batch.
        allow_partial_classes: allow rounds of fewer images than there are classes; each then
            holds a random part of the classes.
        interleaved: spread the rounds of a distillation epoch evenly among its batches.
    """

    epochs: int = 100
    warmup_epochs: int = 20
    warmup_rounds: int = 10
    rounds_per_epoch: int = 2
    kd_steps: int = 400
    round_size: int = 400
    batch_size: int = 512
    allow_partial_classes: bool = False
    interleaved: bool = False

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
        return self.rounds_before(self.max_epochs) * self.round_size

    def rounds_before(self, epoch: int) -> int:
        """Synthesis rounds of all epochs before this one."""
        warm_up = min(epoch, self.warmup_epochs)
        return warm_up * self.warmup_rounds + (epoch - warm_up) * self.rounds_per_epoch

    def rounds_in(self, epoch: int) -> int:
        """Synthesis rounds of epoch 0, 1, ..."""
        return self.warmup_rounds if self.is_warm_up(epoch) else self.rounds_per_epoch

    def is_warm_up(self, epoch: int) -> bool:
        """Whether this epoch only fills the bank."""
        return epoch < self.warmup_epochs


def round_targets(num_classes: int, round_size: int, rng: torch.Generator | None = None) -> Tensor:
    """Labels of one round, int64 [round_size]: full sets of all classes, each set shuffled.

    A set that does not fit whole is cut, so every class appears floor(size / classes) times, and
    a random part of them once more.
    """
    sets = -(-round_size // num_classes)
    order = torch.rand(sets, num_classes, generator=rng).argsort(dim=1)
    return order.flatten()[:round_size]
