"""What every real data set becomes here: uint8 images and labels, one split at a time."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Split = Literal["train", "evaluation"]


class ImageSet(NamedTuple):
    """A split, decoded in memory: images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


class ImageSource(Protocol):
    """Where real images come from.

    A source must touch nothing of the split it is not asked for: a data-free run asks for
    "evaluation" only.
    """

    def load(self, split: Split) -> ImageSet:
        """Read and decode one split."""
        ...
