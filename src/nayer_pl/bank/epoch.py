"""The work of one epoch, in order, and the share of it that one of several ranks has."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nayer_pl.bank.plan import DistillationBatch, Plan, SynthesisRound, WorkItem
from nayer_pl.errors import InputError
from nayer_pl.runtime.distributed import check_batch_size


@dataclass(frozen=True)
class Share:
    """What one of several ranks does of a plan: every `ranks`-th round, a part of every batch.

    Rounds are dealt out in turn over the whole run, so the banks of all ranks fill alike and the
    student sees as many images as with one rank. Of a plan that is interleaved it is a part of
    every round.
    """

    rank: int = 0
    ranks: int = 1

    def rounds(self, first: int, count: int) -> int:
        """How many of the rounds `first`, `first + 1`, ... are this rank's."""
        return len(range((self.rank - first) % self.ranks, count, self.ranks))

    def part(self, count: int) -> slice:
        """Which of so many images are this rank's: they are dealt out in turn."""
        return slice(self.rank, count, self.ranks)

    def room(self, plan: Plan) -> int:
        """How many images this rank's bank holds: all that it makes in the whole run.

        Where generator and student take turns, those of the latest turn, for pictures and counts.
        """
        rounds, size = plan.rounds_before(plan.max_epochs), plan.round_size
        if plan.interleaved:
            return len(range(size)[self.part(size)])
        return self.rounds(0, rounds) * size

    def check(self, plan: Plan, banked: int = 0) -> None:
        """Raise an InputError if the plan cannot be shared out.

        Args:
            plan: of all ranks together.
            banked: images that all ranks start with, dealt out in turn.
        """
        check_batch_size(plan.batch_size, self.ranks)
        if plan.interleaved:
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
        self.interleaved = plan.interleaved
        self.at_once = (
            1 if plan.interleaved else share.ranks
        )  # rounds that are made at the same time
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
        if done["rounds"] == self.rounds or not self.interleaved:
            return done["rounds"] < self.rounds
        return done["steps"] * self.rounds >= self.kd_steps * done["rounds"]

    def _round(self, done: dict[str, int]) -> SynthesisRound:
        turn = min(self.at_once, self.rounds - done["rounds"])
        if self.interleaved:
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


def seek_epoch(loop: Mapping[str, Any], plan: Plan, share: Share) -> None:
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
