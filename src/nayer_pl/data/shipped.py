"""What comes with the packages: class names of known data sets, and scikit-learn's digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt

from nayer_pl.data.batches import ImageSet, ImageSource, Split
from nayer_pl.errors import InputError
from nayer_pl.runtime.options import CheckedFields


def class_names(
    names: str | Sequence[Any] | None = None, source: ImageSource | None = None
) -> list[str]:
    """Names of the classes, from which the text of the labels is made.

    Args:
        names: a data set whose names are part of this package (such as "cifar10"), a list of names,
            or a text file with one name on each line; None for the data set's own names.
        source: the data set; it is asked only if `names` is None.

    Raises:
        InputError: there are no such names, or one of them is empty.

    Example:
        >>> class_names("digits")[:3]
        ['zero', 'one', 'two']
    """
    if names is None:
        if source is None:
            raise InputError("No class names are given: set class_names to a list or a file.")
        return source.class_names()
    if not isinstance(names, str):
        return _checked([str(name) for name in names], "class_names")
    known = {path.stem: path for path in Path(__file__).parent.glob("class_names/*.txt")}
    if names in known:
        return known[names].read_text(encoding="utf-8").splitlines()
    if not Path(names).is_file():
        raise InputError(
            f"No class names of '{names}' are known here, only those of "
            f"{', '.join(sorted(known))}; give others as a list, or as a file with one on each "
            "line."
        )
    try:
        lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"The class names in '{names}' are not UTF-8 text.") from error
    return _checked([line.strip() for line in lines if line.strip()], f"'{names}'")


def _checked(names: list[str], where: str) -> list[str]:
    """The names, unless there are none or one is empty."""
    if not names or not all(name.strip() for name in names):
        what = "holds no class names" if not names else "holds an empty class name"
        raise InputError(f"{where} {what}; give one for each class, in the order of the labels.")
    return names


@dataclass(frozen=True)
class Digits(CheckedFields):
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

    def load(self, split: Split) -> ImageSet:
        """[N, 1, image_size, image_size]; the split is stratified by class."""
        # Imported here because it is slow and only these images need it.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        every = load_digits(return_X_y=True)
        halves = train_test_split(*every, test_size=500, stratify=every[1], random_state=0)
        images, labels = map(torch.from_numpy, halves[0 if split == "train" else 1 :: 2])
        pixels = images.float().view(-1, 1, 8, 8) * (255 / 16)
        size = (self.image_size, self.image_size)
        enlarged = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return ImageSet(enlarged.round().to(torch.uint8), labels.long())

    def class_names(self) -> list[str]:
        """Zero to nine, as words."""
        return class_names("digits")
