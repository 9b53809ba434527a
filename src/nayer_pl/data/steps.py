"""Epochs of so many steps, whatever the size of the data set."""

from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any

from torch import Tensor

from nayer_pl.data.batches import Batches
from nayer_pl.data.datamodule import RealDataModule


class StepBatches(Batches):
    """Passes over a split without an end, of which epoch e has batches e * steps and following.

    Every pass has a random order of its own, so images are used about equally often, wherever the
    epochs cut the passes.

    Args:
        first: the shuffled pass of this epoch; it says the images, their number and the rank.
        steps: batches in an epoch.
    """

    def __init__(self, first: Batches, steps: int) -> None:
        super().__init__(
            first.images, first.batch_size, True, first.seed, first.epoch, first.rank, first.world
        )
        self.per_pass, self.length = self.length, steps

    def indices(self) -> tuple[Tensor, ...]:
        """The images of each batch of this rank."""
        begin, skip = divmod(self.epoch * self.length, self.per_pass)
        batches = chain.from_iterable(self._passes(begin))
        return tuple(islice(batches, skip, skip + self.length))

    def _passes(self, begin: int) -> Iterator[tuple[Tensor, ...]]:
        for number in count(begin):
            yield Batches(
                self.images, self.batch_size, True, self.seed, number, self.rank, self.world
            ).indices()


class SteppedDataModule(RealDataModule):
    """Real images, in epochs of as many student updates as those of a data-free run.

    Args:
        source: where they come from.
        steps: batches in an epoch.
        options: anything else that `RealDataModule` takes.
    """

    def __init__(self, source: Any, steps: int, **options: Any) -> None:
        super().__init__(source, **options)
        self.steps = steps

    def train_dataloader(self) -> StepBatches:
        """Shuffled batches of this epoch."""
        return StepBatches(super().train_dataloader(), self.steps)
