"""What every real data set becomes here: uint8 images and labels, one split at a time."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from nayer_pl.errors import InputError

Split = Literal["train", "evaluation"]


class Images(Protocol):
    """A split: an `ImageSet` in memory, or an `ImageStream` on disk."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], known without decoding an image."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""
        ...

    def read(self, batches: Sequence[Tensor], key: str = "") -> Iterator[list[Tensor]]:
        """Yield [images uint8 [B, C, H, W], labels int64 [B]] for each tensor of indices.

        What is random about an image depends on `key` and its index alone.
        """
        ...


class ImageSet(NamedTuple):
    """A split, decoded in memory: images uint8 [N, C, H, W] and labels int64 [N]."""

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
    """Where real images come from.

    A source must touch nothing of the split it is not asked for: a data-free run asks for
    "evaluation" only.
    """

    def load(self, split: Split) -> Images:
        """Open one split."""
        ...

    def class_names(self) -> list[str]:
        """The data set's own names of its classes, in the order of the labels."""
        ...


def open_split(
    source: ImageSource,
    split: Split,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
) -> Images:
    """Load a split.

    Args:
        source: where it comes from.
        split: which one.
        num_classes: what its labels must be of; None does not check them.
        image_shape: (C, H, W) that its images must have; None does not check them.

    Raises:
        InputError: it is empty, its images have another shape, or there are some without a label or
            with one that is too large.
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
            f"data.source.{split}_split=validation."
        )
    counted = getattr(source, "num_classes", None)
    if num_classes is not None and counted not in (None, num_classes):
        raise InputError(
            f"There are {counted} class folders, but data.num_classes={num_classes}: nobody knows "
            "which labels they stand for; list the folders of all classes, in the order of their "
            "labels, in data.source.classes."
        )
    largest = int(images.labels.max())
    if num_classes is not None and largest >= num_classes:
        raise InputError(
            f"The largest label of the {split} split is {largest}, but data.num_classes="
            f"{num_classes} stands for labels 0 to {num_classes - 1}; choose the data set that "
            "belongs to these classes, or correct data.num_classes."
        )
    if image_shape is not None and images.image_shape != tuple(image_shape):
        raise InputError(
            f"The images of the {split} split are {list(images.image_shape)}, but data.image_shape="
            f"{list(image_shape)}; correct one of them (the size of the images is the data "
            "source's)."
        )
    return images
