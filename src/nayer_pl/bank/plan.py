"""The plan of a run and of each epoch: rounds, distillation batches, and each rank's part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.errors import InputError
from nayer_pl.runtime.distributed import check_batch_size
from nayer_pl.runtime.options import CheckedFields


class SynthesisRound(NamedTuple):
    """Synthesize one batch of images for these labels and add it to the bank."""

    targets: Tensor
    """Target labels, int64 [round_size]; empty where only other ranks have a round."""
    warm_up: bool
    """The student has learned nothing yet, so its predictions do not count."""


class DistillationBatch(NamedTuple):
    """Banked images for one step of the student: this rank's part of the batch."""

    images: Tensor
    """uint8 [B, C, H, W] from the bank; floats in [0, 1] once they are on the device."""
    labels: Tensor
    """The target labels that the images were made for, int64 [B]."""


WorkItem = SynthesisRound | DistillationBatch


@dataclass(frozen=True)
class Plan(CheckedFields):
    """How much is synthesized and distilled (NAYER, section 4.1).

    A warm-up epoch is `warmup_rounds` rounds. A distillation epoch is `rounds_per_epoch` rounds,
    then `kd_steps` batches. If it is `interleaved`, the batches are spread evenly after the rounds.
    Sizes are totals over all ranks. The ranks take turns with the rounds and split every batch; of
    an interleaved plan they split every round too, so that its steps do not depend on their number.

    Args:
        epochs: distillation epochs, the paper's E.
        warmup_epochs: epochs before them.
        warmup_rounds: synthesis rounds in each warm-up epoch.
        rounds_per_epoch: synthesis rounds in each distillation epoch.
        kd_steps: distillation batches in each distillation epoch.
        round_size: images made in one round.
        batch_size: images in a distillation batch.
        allow_partial_classes: allow rounds of fewer images than classes, a random part of them.
        interleaved: spread the rounds of a distillation epoch evenly among its batches.

    Raises:
        InputError: an option is out of its range, or the plan makes no images.

    Example:
        >>> plan = Plan(epochs=100, warmup_epochs=20)
        >>> plan.max_epochs, plan.images
        (120, 160000)
    """

    epochs: PositiveInt = 100
    warmup_epochs: NonNegativeInt = 20
    warmup_rounds: NonNegativeInt = 10
    rounds_per_epoch: NonNegativeInt = 2
    kd_steps: PositiveInt = 400
    round_size: PositiveInt = 400
    batch_size: PositiveInt = 512
    allow_partial_classes: bool = False
    interleaved: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.warmup_epochs * self.warmup_rounds or self.rounds_per_epoch):
            raise InputError("The plan makes no images: give it a warm-up or rounds per epoch.")
        if self.warmup_epochs and not self.warmup_rounds:
            raise InputError("Warm-up epochs without rounds: set warmup_epochs=0 instead.")

    def check_run(self, max_epochs: int, round_limit: int | None = None) -> None:
        """Raise an InputError unless a trainer and a method with these limits can follow it."""
        if not 0 < max_epochs <= self.max_epochs:
            raise InputError(
                f"max_epochs must be from 1 to the plan's {self.max_epochs}, as in "
                f"Trainer(max_epochs=plan.max_epochs), not {max_epochs}."
            )
        if round_limit is not None and round_limit < self.round_size:
            raise InputError(
                f"round_size must be at least the plan's, which is {self.round_size}, not "
                f"{round_limit}."
            )

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


@dataclass(frozen=True)
class RankShard:
    """One rank's part of a plan: every `world_size`-th round and a slice of every batch.

    The ranks take turns, so their banks fill alike and the student sees as many images as on one.
    Of an interleaved plan each has a slice of every round.
    """

    rank: int = 0
    world_size: int = 1

    def rounds(self, first: int, count: int) -> int:
        """How many of the rounds `first`, ..., `first + count - 1` are this rank's."""
        return len(range((self.rank - first) % self.world_size, count, self.world_size))

    def slice(self, count: int) -> slice:
        """Which of `count` images are this rank's: every `world_size`-th."""
        return slice(self.rank, count, self.world_size)

    def capacity(self, plan: Plan) -> int:
        """Images in this rank's bank: all that it makes, or its slice of one interleaved round."""
        rounds, size = plan.rounds_before(plan.max_epochs), plan.round_size
        if plan.interleaved:
            return len(range(size)[self.slice(size)])
        return self.rounds(0, rounds) * size

    def check(self, plan: Plan, banked: int = 0) -> None:
        """Raise an InputError if ranks with so many banked images cannot split the plan."""
        ranks = self.world_size
        check_batch_size(plan.batch_size, ranks)
        first = plan.rounds_before(plan.warmup_epochs) + plan.rounds_per_epoch
        if plan.interleaved and plan.round_size < ranks:
            raise InputError(
                f"A round of round_size={plan.round_size} images cannot be split among {ranks} "
                f"processes; choose at least {ranks}."
            )
        if not plan.interleaved and max(first, banked) < ranks:
            raise InputError(
                f"The plan makes {first} rounds before the first distillation step, fewer than the "
                f"{ranks} processes, and a process without images cannot distill; use a longer "
                "warm-up (warmup_epochs, warmup_rounds) or fewer devices."
            )


@dataclass(eq=False)
class EpochPlan:
    """The rounds and batches of one epoch, in order; each is made when the trainer asks for it.

    All ranks have equally many items, because the trainer waits for all of them after each: where
    the rounds do not divide, some ranks get a round without targets.

    The state counts what all ranks together have done of the epoch, so that a run can resume in the
    middle of it with another number of ranks.
    """

    plan: Plan
    epoch: int
    num_classes: int
    bank: MemoryBank
    shard: RankShard = field(default_factory=RankShard)
    label_rng: torch.Generator | None = None  # of the targets, on the CPU
    rng: torch.Generator | None = None  # of the samples and their augmentation, where the bank is
    augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        plan, epoch = self.plan, self.epoch
        self.warm_up = plan.is_warm_up(epoch)
        self.rounds, self.rounds_before = plan.rounds_in(epoch), plan.rounds_before(epoch)
        self.kd_steps = 0 if self.warm_up else plan.kd_steps
        # Rounds in an item: one of every rank, or a single one that all ranks split.
        self.at_once = 1 if plan.interleaved else self.shard.world_size
        self._start = self._done = {"rounds": 0, "steps": 0}

    def __len__(self) -> int:
        return self._items(self.rounds, self.kd_steps)

    def __iter__(self) -> Iterator[WorkItem]:
        self._done = done = dict(self._start)
        batch_size = self.plan.batch_size // self.shard.world_size
        while done["rounds"] < self.rounds or done["steps"] < self.kd_steps:
            if self._is_round_next(**done):
                made = min(self.at_once, self.rounds - done["rounds"])
                targets = self._targets(self.rounds_before + done["rounds"], made)
                done["rounds"] += made
                yield SynthesisRound(targets, self.warm_up)
            else:
                images, labels = self.bank.sample(batch_size, self.rng, self.augmentation)
                done["steps"] += 1
                yield DistillationBatch(images, labels)

    def _is_round_next(self, rounds: int, steps: int) -> bool:
        if rounds == self.rounds or not self.plan.interleaved:
            return rounds < self.rounds
        return steps * self.rounds >= self.kd_steps * rounds

    def _targets(self, first: int, count: int) -> Tensor:
        """This rank's target labels in `count` rounds from `first` on."""
        if not self.plan.interleaved and not self.shard.rounds(first, count):
            return torch.empty(0, dtype=torch.int64)
        targets = round_targets(self.num_classes, self.plan.round_size, self.label_rng)
        return targets[self.shard.slice(len(targets))] if self.plan.interleaved else targets

    def _items(self, rounds: int, steps: int) -> int:
        return -(-rounds // self.at_once) + steps

    def state_dict(self) -> dict[str, int]:
        """How many rounds and distillation steps of the epoch were handed out."""
        return dict(self._done)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin after what is done already."""
        self._start = self._done = state

    def position(self) -> int:
        """The number of items that come before the next one."""
        left = self.rounds - self._done["rounds"], self.kd_steps - self._done["steps"]
        return len(self) - self._items(*left)


def round_targets(num_classes: int, round_size: int, rng: torch.Generator | None = None) -> Tensor:
    """Target labels of one round, int64 [round_size]: full sets of all classes, each shuffled.

    The last set is cut if it does not fit, so every class appears floor(round_size / num_classes)
    times, and a random part of them once more.
    """
    sets = -(-round_size // num_classes)
    order = torch.rand(sets, num_classes, generator=rng).argsort(dim=1)
    return order.flatten()[:round_size]
