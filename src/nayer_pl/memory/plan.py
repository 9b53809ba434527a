"""The plan of an epoch: which rounds and which distillation batches, in which order."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """How much is synthesised and distilled (NAYER, section 4.1).

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
        partial_rounds: allow rounds of fewer images than there are classes; each then holds a
            random part of the classes.
        alternate: spread the rounds of a distillation epoch evenly among its batches.
    """

    epochs: int = 100
    warmup_epochs: int = 20
    warmup_rounds: int = 10
    rounds_per_epoch: int = 2
    kd_steps: int = 400
    round_size: int = 400
    batch_size: int = 512
    partial_rounds: bool = False
    alternate: bool = False

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


@dataclass(frozen=True)
class Share:
    """What one of several ranks does of a plan: every `ranks`-th round, a part of every batch.

    Rounds are dealt out in turn over the whole run, so the banks of all ranks fill alike and the
    student sees as many images as with one rank. Of a plan that alternates it is a part of every
    round.
    """

    rank: int = 0
    ranks: int = 1

    def rounds(self, first: int, count: int) -> int:
        """How many of the rounds `first`, `first + 1`, ... are this rank's."""
        return len(range((self.rank - first) % self.ranks, count, self.ranks))

    def part(self, count: int) -> slice:
        """Which of so many images are this rank's: they are dealt out in turn."""
        return slice(self.rank, count, self.ranks)

    def images(self, plan: Plan) -> int:
        """How many images this rank makes in the whole run."""
        rounds, size = plan.rounds_before(plan.max_epochs), plan.round_size
        if plan.alternate:
            return rounds * len(range(size)[self.part(size)])
        return self.rounds(0, rounds) * size

    def check(self, plan: Plan, banked: int = 0) -> None:
        """Raise an InputError if the plan cannot be shared out.

        Args:
            plan: of all ranks together.
            banked: images that all ranks start with, dealt out in turn.
        """
        if plan.batch_size % self.ranks:
            below = plan.batch_size // self.ranks * self.ranks
            raise InputError(
                f"plan.batch_size={plan.batch_size} cannot be shared out evenly among {self.ranks} "
                f"processes; choose {f'{below} or ' if below else ''}{below + self.ranks}."
            )
        if plan.alternate:
            if plan.round_size < self.ranks:
                raise InputError(
                    f"plan.round_size={plan.round_size} images cannot be shared out among "
                    f"{self.ranks} processes; choose at least {self.ranks}."
                )
            return
        first = plan.rounds_before(plan.warmup_epochs) + plan.rounds_per_epoch
        if max(first, banked) < self.ranks:
            raise InputError(
                f"The plan makes {first} rounds before the first distillation step, fewer than the "
                f"{self.ranks} processes, and one without images cannot distil; give it a longer "
                "warm-up (plan.warmup_epochs, plan.warmup_rounds) or use fewer devices."
            )


class EpochPlan:
    """The work items of one epoch, in order, with a length (an item is made when it is due).

    All ranks get equally many items, because the trainer waits for all of them after each: where
    the rounds do not divide, some ranks get a round without targets.

    Its state says how much of the epoch is done, by all ranks together; a trainer saves it in the
    middle of an epoch. Whoever walks on from there may be another number of ranks.

    Args:
        plan: how much.
        epoch: which epoch, from 0.
        targets: makes the labels of a round.
        batch: draws a distillation batch; called after the epoch's rounds were banked.
        share: which part of it is this rank's.
    """

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        targets: Callable[[], Tensor],
        batch: Callable[[], DistillationBatch],
        share: Share = Share(),
    ) -> None:
        self.warm_up, self.share = plan.is_warm_up(epoch), share
        self.rounds, self.rounds_before = plan.rounds_in(epoch), plan.rounds_before(epoch)
        self.kd_steps = 0 if self.warm_up else plan.kd_steps
        self.alternate = plan.alternate
        self.at_once = 1 if plan.alternate else share.ranks  # rounds that are made at the same time
        self._targets, self._batch = targets, batch
        self._start = self._done = {"rounds": 0, "steps": 0}

    def __len__(self) -> int:
        return self._items(self.rounds, self.kd_steps)

    def _items(self, rounds: int, steps: int) -> int:
        return -(-rounds // self.at_once) + steps

    def __iter__(self) -> Iterator[WorkItem]:
        self._done = done = dict(self._start)
        while done["rounds"] < self.rounds or done["steps"] < self.kd_steps:
            if self._round_is_next(done):
                yield self._round(done)
            else:
                batch = self._batch()
                done["steps"] += 1
                yield batch

    def _round_is_next(self, done: dict[str, int]) -> bool:
        if done["rounds"] == self.rounds or not self.alternate:
            return done["rounds"] < self.rounds
        return done["steps"] * self.rounds >= self.kd_steps * done["rounds"]

    def _round(self, done: dict[str, int]) -> SynthesisRound:
        turn = min(self.at_once, self.rounds - done["rounds"])
        if self.alternate:
            targets = self._targets()
            targets = targets[self.share.part(len(targets))]
        elif self.share.rounds(self.rounds_before + done["rounds"], turn):
            targets = self._targets()
        else:
            targets = torch.empty(0, dtype=torch.int64)
        done["rounds"] += turn
        return SynthesisRound(targets, self.warm_up)

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


def find_place(loop: Mapping[str, Any], plan: Plan, share: Share) -> None:
    """Let a trainer that resumes in the middle of an epoch count as this number of ranks does.

    Args:
        loop: the saved state of its fit loop; the place in the epoch is changed.
        plan: of the run.
        share: the rank's, now.
    """
    done, epoch = loop["state_dict"].get("combined_loader"), loop["epoch_progress"]["current"]
    if not done or epoch["processed"] == epoch["started"]:
        return
    items = EpochPlan(plan, epoch["processed"], _never, _never, share)
    items.load_state_dict(done[0])
    place = loop["epoch_loop.batch_progress"]["current"]
    moved = items.position() - place["ready"]
    place.update({name: count + moved for name, count in place.items()})


def _never() -> Any:
    raise AssertionError("only counted")


def round_targets(num_classes: int, round_size: int, rng: torch.Generator | None = None) -> Tensor:
    """Labels of one round, int64 [round_size]: full sets of all classes, each set shuffled.

    A set that does not fit whole is cut, so every class appears floor(size / classes) times, and
    a random part of them once more.
    """
    sets = -(-round_size // num_classes)
    order = torch.rand(sets, num_classes, generator=rng).argsort(dim=1)
    return order.flatten()[:round_size]
