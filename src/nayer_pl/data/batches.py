"""A split of real images in memory or on disk, and batches of it for each rank."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from nayer_pl.errors import InputError
from nayer_pl.runtime.numerics import Stream, stream_seed
from nayer_pl.runtime.options import checked

Split = Literal["train", "evaluation"]


class Images(Protocol):
    """A split: an `ImageSet` in memory, or an `ImageStream` on disk."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], known without decoding an image."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""

    def read(self, batches: Sequence[Tensor], key: str = "") -> Iterator[list[Tensor]]:
        """Yield [images uint8 [B, C, H, W], labels int64 [B]] for each tensor of indices.

        A random crop depends on `key` and the index of its image alone.
        """


class ImageSet(NamedTuple):
    """A split in memory: images uint8 [N, C, H, W] and labels int64 [N].

    Example:
        >>> ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)).image_shape
        (1, 8, 8)
    """

    images: Tensor
    labels: Tensor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def read(self, batches: Sequence[Tensor], key: str = "") -> Iterator[list[Tensor]]:
        """Index whole batches: no per-image work, no worker processes."""
        for index in batches:
            yield [self.images[index], self.labels[index]]


class ImageSource(Protocol):
    """Something that loads the splits of a data set.

    A source must not open the other split: a data-free run asks for "evaluation" only.
    """

    def load(self, split: Split) -> Images:
        """Open one split."""

    def class_names(self) -> list[str]:
        """The data set's own names of its classes, in the order of the labels."""


def open_split(
    source: ImageSource,
    split: Split,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
) -> Images:
    """Load a split and check it.

    Args:
        source: source of the images.
        split: "train" or "evaluation".
        num_classes: number of classes that the labels must fit; None does not check them.
        image_shape: (C, H, W) that the images must have; None does not check them.

    Raises:
        InputError: the split is empty, or a shape or label does not fit.
    """
    images = source.load(split)
    count = len(images.labels)
    if not count:
        raise InputError(f"The {split} split of the data set holds no images.")
    unlabeled = int((images.labels < 0).sum())
    if unlabeled:
        raise InputError(
            f"{unlabeled:,} of the {count:,} images of the {split} split have no label (-1), as "
            "in the test splits of some sets on the Hub; use a labeled split, such as "
            f"{split}_split=validation."
        )
    counted = getattr(source, "num_classes", None)
    if num_classes is not None and counted not in (None, num_classes):
        raise InputError(
            f"There are {counted} class folders, but num_classes={num_classes}, so it is unknown "
            "which labels they stand for; list the folders of all classes, in the order of their "
            "labels, in the source's option classes."
        )
    largest = int(images.labels.max())
    if num_classes is not None and largest >= num_classes:
        raise InputError(
            f"The largest label of the {split} split is {largest}, but num_classes={num_classes} "
            f"stands for labels 0 to {num_classes - 1}; choose the data set that belongs to these "
            "classes, or correct num_classes."
        )
    if image_shape is not None and images.image_shape != tuple(image_shape):
        raise InputError(
            f"The images of the {split} split are {list(images.image_shape)}, but image_shape="
            f"{list(image_shape)}; correct one of them (the source decides the size of the images)."
        )
    return images


class Batches:
    """An epoch of a split, in batches [images uint8 [B, C, H, W], labels int64 [B]].

    In order, every image belongs to one batch of one rank. Shuffled, the ranks split the same
    random order, and images that do not fill a batch on every rank are left out. All ranks have
    equally many batches, because they wait for each other after every batch.

    Epoch e of a fixed number of `steps` is batches e * steps and following of endless passes, so
    images are used about equally often, wherever the epochs cut the passes.

    This is not a DataLoader on purpose: a trainer would replace its sampler.

    Args:
        images: the split.
        batch_size: images per batch on each rank; in order, batches may be a little smaller.
        shuffle: visit the images in the random order of (`seed`, `epoch`).
        seed: seed of the order and of random crops.
        epoch: number of the epoch; each has its own order and crops.
        rank: this process.
        world_size: number of processes.
        steps: batches in an epoch; None for one pass.

    Raises:
        InputError: there are too few images to give every rank a batch.

    Example:
        >>> images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
        >>> [labels.tolist() for _, labels in Batches(ImageSet(images, torch.arange(5)), 3)]
        [[0, 1, 2], [3, 4]]
    """

    @checked
    def __init__(
        self,
        images: Images,
        batch_size: PositiveInt,
        shuffle: bool = False,
        seed: int = 0,
        epoch: NonNegativeInt = 0,
        rank: NonNegativeInt = 0,
        world_size: PositiveInt = 1,
        steps: PositiveInt | None = None,
    ) -> None:
        count = len(images.labels)
        self.images, self.batch_size, self.shuffle = images, batch_size, shuffle
        self.seed, self.epoch, self.rank, self.world_size = seed, epoch, rank, world_size
        # In order no batch is empty, even if two batches of one image become one batch of two.
        ordered = min(-(-count // (batch_size * world_size)), count // world_size)
        self.per_pass = count // (batch_size * world_size) if shuffle else ordered
        self.length = steps or self.per_pass
        self._start = self._done = 0
        if not self.per_pass:
            size = f"full batches of {batch_size}" if shuffle else "images"
            raise InputError(
                f"The data set has {count} images, too few to give {world_size} processes {size}; "
                "use fewer devices, or a smaller batch."
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
        """How many batches were yielded; a trainer saves it in the middle of an epoch."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin after the batches that are done already."""
        self._start = self._done = state["done"]

    def indices(self) -> tuple[Tensor, ...]:
        """Indices of the images of each batch of this rank."""
        begin, skip = divmod(self.epoch * self.length, self.per_pass)
        batches = chain.from_iterable(map(self._pass, count(begin)))
        return tuple(islice(batches, skip, skip + self.length))

    def _pass(self, number: int) -> tuple[Tensor, ...]:
        images, world_size = len(self.images.labels), self.world_size
        if not self.shuffle:
            every = torch.arange(images).tensor_split(world_size * self.per_pass)
            return every[self.rank :: world_size]
        rng = torch.Generator().manual_seed(stream_seed(self.seed, number, Stream.ORDER))
        full = torch.randperm(images, generator=rng)[: self.per_pass * world_size * self.batch_size]
        return full.view(self.per_pass, world_size, self.batch_size)[:, self.rank].unbind()


def pinned_for(device: torch.device, tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors in pinned memory if they go to a GPU; the copy would wait for it otherwise."""
    if device.type != "cuda":
        return list(tensors)
    return [each.pin_memory() if each.device.type == "cpu" else each for each in tensors]
