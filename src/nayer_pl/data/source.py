"""Base of the sources of encoded pictures: splits, decoding, memory or disk."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from nayer_pl.data.batches import ImageSet, Split
from nayer_pl.data.decoding import Decoder, EncodedImages, ImageStream, OnCorrupt
from nayer_pl.errors import InputError
from nayer_pl.runtime.options import check_fields

SPLITS = {"train": ("train",), "evaluation": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class PictureSource(ABC):
    """Pictures in files.

    Args:
        path: folder or name of the data set.
        image_shape: (C, H, W) of the images, C = 1 (gray) or 3 (RGB); pictures of another size are
            resized with their aspect ratio and cropped.
        crop: share of the height and width that evaluation keeps.
        in_memory: decode a split into memory; otherwise its pictures stay on disk, are decoded
            when they are needed, and training images are cropped at random.
        workers: processes that decode pictures from disk.
        corrupt: "stop" at pictures that cannot be read, or "skip" them.
        train_split: name of the training split, or several of which the first that exists is taken;
            None for "train".
        evaluation_split: the same for evaluation; None for test, validation, valid or val.

    Raises:
        InputError: an option is out of its range.
    """

    path: str | None
    image_shape: Sequence[PositiveInt]
    crop: Annotated[float, Gt(0), Le(1)] = 1.0
    in_memory: bool = True
    workers: NonNegativeInt = 4
    corrupt: OnCorrupt = "stop"
    train_split: str | Sequence[str] | None = None
    evaluation_split: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        shape = list(self.image_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(f"image_shape must be [C, H, W] with C = 1 or 3, not {shape}.")

    def load(self, split: Split) -> ImageSet | ImageStream:
        """Open one split, and no file of the other.

        Raises:
            InputError: the data set or split does not exist, or pictures cannot be read.
        """
        encoded, labels = self.find(split)
        channels, height, width = self.image_shape
        at_random = split == "train" and not self.in_memory
        decoder = Decoder((channels, height, width), self.crop, at_random)
        stream = ImageStream(encoded, labels, decoder, self.corrupt, self.workers)
        return stream.decoded() if self.in_memory else stream

    @abstractmethod
    def find(self, split: Split) -> tuple[EncodedImages, Tensor]:
        """The pictures of a split and their labels, int64 [N]."""

    @abstractmethod
    def class_names(self) -> list[str]:
        """The data set's own names of its classes, in the order of the labels."""

    def split_names(self, split: Split) -> tuple[str, ...]:
        """Possible names of the split."""
        given = self.train_split if split == "train" else self.evaluation_split
        if isinstance(given, str):
            return (given,)
        return tuple(given) if given else SPLITS[split]


def first_found(names: Sequence[str], found: Sequence[str], kind: str) -> str:
    """The first of `names` that is among `found`, or an InputError that lists `found`."""
    for name in names:
        if name in found:
            return name
    listed = ", ".join(found[:20]) or "nothing"
    raise InputError(f"The data set has no {kind} {' or '.join(names)}; it has {listed}.")
