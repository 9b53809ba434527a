"""The work of one epoch: target labels -> rounds -> batches from the bank."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nayer_pl.bank.bank import MemoryBank
from nayer_pl.bank.plan import DistillationBatch, Plan, RankShard, SynthesisRound, WorkItem


class EpochPlan:
    """The rounds and batches of one epoch, in order; each is made when the trainer asks for it.

    All ranks have equally many items, because the trainer waits for all of them after each: where
    the rounds do not divide, some ranks get a round without targets.

    The state counts what all ranks together have done of the epoch, so that a run can resume in the
    middle of it with another number of ranks.

    Args:
        plan: of the run.
        epoch: number of the epoch, from 0.
        num_classes: number of classes; a round's targets are labels below it.
        bank: what distillation batches are sampled from.
        shard: this rank's part of the plan; None for all of it.
        label_rng: random stream of the targets, on the CPU.
        rng: random stream of the samples and their augmentation, on the bank's device.
        augmentation: applied to the sampled images, called with `rng`; None for none.
    """

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        num_classes: int,
        bank: MemoryBank,
        shard: RankShard | None = None,
        label_rng: torch.Generator | None = None,
        rng: torch.Generator | None = None,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        self.plan, self.num_classes, self.bank = plan, num_classes, bank
        self.shard = shard or RankShard()
        self.label_rng, self.rng, self.augmentation = label_rng, rng, augmentation
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
                batch = DistillationBatch(
                    *self.bank.sample(batch_size, self.rng, self.augmentation)
                )
                done["steps"] += 1
                yield batch

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


def seek_epoch(loop: Mapping[str, Any], epoch_plan: Callable[[int], EpochPlan]) -> None:
    """Correct the position of a fit loop that resumes in the middle of an epoch.

    The trainer counts items, of which there are more or fewer with another number of ranks.

    Args:
        loop: saved state of the trainer's fit loop; its position in the epoch is changed.
        epoch_plan: makes the plan of an epoch for the present number of ranks.
    """
    done, epoch = loop["state_dict"].get("combined_loader"), loop["epoch_progress"]["current"]
    if not done or epoch["processed"] == epoch["started"]:
        return
    items = epoch_plan(epoch["processed"])
    items.load_state_dict(done[0])
    place = loop["epoch_loop.batch_progress"]["current"]
    moved = items.position() - place["ready"]
    place.update({name: count + moved for name, count in place.items()})
