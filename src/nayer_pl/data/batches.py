"""Batches of a split, and which of them belong to which rank."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nayer_pl.data.images import Images
from nayer_pl.errors import InputError
from nayer_pl.runtime.rng import Stream, stream_seed


class Batches:
    """One pass over a split, in batches [images uint8 [B, C, H, W], labels int64 [B]].

    In order, every image belongs to one batch of one rank. Shuffled, the ranks share out the same
    random order, and what does not fill a batch on every rank is left out. Either way all ranks
    have equally many batches, because they wait for one another after each.

    This is no DataLoader on purpose: a trainer would put its own sampler into one.

    Args:
        images: the split.
        batch_size: images in a batch, of one rank; in order, batches may be a little smaller.
        shuffle: in the random order of (`seed`, `epoch`); otherwise in order.
        seed, epoch: of the order and of random crops.
        rank, world: which of how many processes.

    Raises:
        InputError: there are too few images to give every rank a batch.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        count = len(images.labels)
        self.images, self.batch_size, self.shuffle = images, batch_size, shuffle
        self.seed, self.epoch, self.rank, self.world = seed, epoch, rank, world
        # In order: no batch is empty, even if that makes two of one image into one of two.
        even = min(-(-count // (batch_size * world)), count // world)
        self.length = count // (batch_size * world) if shuffle else even
        self._start = self._done = 0
        if not self.length:
            size = f"full batches of {batch_size}" if shuffle else "images"
            raise InputError(
                f"The data set has {count} images, too few to give {world} processes {size}; use "
                "fewer devices, or a smaller batch."
            )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[Tensor]]:
        self._done = self._start
        rest = self.indices()[self._start :]
        for batch in self.images.read(rest, f"{self.seed} {self.epoch}"):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were handed out; a trainer saves it in the middle of an epoch."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin after those that are done already."""
        self._start = self._done = state["done"]

    def indices(self) -> tuple[Tensor, ...]:
        """The images of each batch of this rank."""
        count = len(self.images.labels)
        if not self.shuffle:
            every = torch.arange(count).tensor_split(self.world * self.length)
            return every[self.rank :: self.world]
        rng = torch.Generator().manual_seed(stream_seed(self.seed, self.epoch, Stream.ORDER))
        order = torch.randperm(count, generator=rng)
        full = order[: self.length * self.world * self.batch_size]
        return full.view(self.length, self.world, self.batch_size)[:, self.rank].unbind()
