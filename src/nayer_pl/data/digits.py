"""scikit-learn's handwritten digits: real images that need no download."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import PositiveInt

from nayer_pl.data.batches import ImageSet, Split
from nayer_pl.data.class_names import class_names
from nayer_pl.runtime.options import check_fields


@dataclass(frozen=True)
class Digits:
    """1,797 gray digits in a fixed split, 1,297 for training and 500 for evaluation.

    Args:
        image_size: height and width in pixels, to which the 8x8 originals are enlarged bilinearly.

    Raises:
        InputError: the size is out of its range.

    Example:
        >>> Digits(image_size=8).load("evaluation").images.shape
        torch.Size([500, 1, 8, 8])
    """

    image_size: PositiveInt = 16

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, split: Split) -> ImageSet:
        """[N, 1, image_size, image_size]; the split is stratified by class."""
        # Imported here because it is slow and only these images need it.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        halves = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
        which = 0 if split == "train" else 1
        pixels = torch.from_numpy(halves[which]).float().view(-1, 1, 8, 8) * (255 / 16)
        size = (self.image_size, self.image_size)
        enlarged = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return ImageSet(
            enlarged.round().to(torch.uint8), torch.from_numpy(halves[2 + which]).long()
        )

    def class_names(self) -> list[str]:
        """Zero to nine, as words."""
        return class_names("digits")
