"""The work of one epoch: target labels -> rounds -> batches from the bank."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.bank.plan import DistillationBatch, Plan, RankShard, SynthesisRound, WorkItem


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
        """This rank's target labels in the rounds `first`, ..., `first + count - 1`."""
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
