"""What all sources of encoded pictures have in common: splits, decoding, memory or disk."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from nayer_pl.data.images import ImageSet, Split
from nayer_pl.data.pictures import Decoder
from nayer_pl.data.stream import Corrupt, Encoded, ImageStream
from nayer_pl.errors import InputError

SPLITS = {"train": ("train",), "evaluation": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class PictureSource(ABC):
    """Pictures in files.

    Args:
        path: where they are.
        image_shape: (C, H, W) that they become: gray or RGB; those of another size are resized
            with their aspect ratio and cropped.
        crop: share of the height and width that evaluation keeps of them.
        in_memory: decode a split into memory; otherwise its pictures stay on disk, are decoded
            when they are needed, and training images are cropped at random.
        workers: processes that decode pictures from disk.
        corrupt: "stop" at pictures that cannot be read, or "skip" them.
        train_split, evaluation_split: what they are called, where it is none of the usual names;
            the first of several that there is.

    Raises:
        InputError: an option has no such value.
    """

    path: str | None
    image_shape: Sequence[int]
    crop: float = 1.0
    in_memory: bool = True
    workers: int = 4
    corrupt: Corrupt = "stop"
    train_split: str | Sequence[str] | None = None
    evaluation_split: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        shape = list(self.image_shape)
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise InputError(
                "data.image_shape is [C, H, W] with C = 1 or 3 and sides of at least a pixel, not "
                f"{shape}."
            )
        if not 0 < self.crop <= 1:
            raise InputError(f"data.crop is a share between 0 and 1, not {self.crop}.")
        if self.workers < 0:
            raise InputError(f"data.workers must not be negative: {self.workers}.")
        if self.corrupt not in get_args(Corrupt):
            raise InputError(f"data.corrupt is stop or skip, not '{self.corrupt}'.")

    def load(self, split: Split) -> ImageSet | ImageStream:
        """Open one split, and no file of any other.

        Raises:
            InputError: no such data set, no such split, or pictures that cannot be read.
        """
        encoded, labels = self.find(split)
        channels, height, width = self.image_shape
        at_random = split == "train" and not self.in_memory
        decoder = Decoder((channels, height, width), self.crop, at_random)
        stream = ImageStream(encoded, labels, decoder, self.corrupt, self.workers)
        return stream.decoded() if self.in_memory else stream

    @abstractmethod
    def find(self, split: Split) -> tuple[Encoded, Tensor]:
        """The pictures of a split and their labels, int64 [N]."""

    @abstractmethod
    def class_names(self) -> list[str]:
        """The data set's own names of its classes, in the order of the labels."""

    def split_names(self, split: Split) -> tuple[str, ...]:
        """What the split may be called."""
        given = self.train_split if split == "train" else self.evaluation_split
        if isinstance(given, str):
            return (given,)
        return tuple(given) if given else SPLITS[split]


def one_of(found: Sequence[str], wanted: Sequence[str], what: str) -> str:
    """The first of `wanted` that there is, or an InputError that says what there is."""
    for name in wanted:
        if name in found:
            return name
    there = ", ".join(found[:20]) or "nothing"
    raise InputError(f"The data set has no {what} {' or '.join(wanted)}; it has {there}.")
