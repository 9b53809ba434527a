"""Image classification sets of the Hugging Face Hub, or a local folder in the same layout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from nayer_pl.data.images import ImageSet, Split
from nayer_pl.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": ("train",), "evaluation": ("test", "validation", "valid", "val")}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True)
class HubImages:
    """A set with an image column and a label column.

    Args:
        path: name on the Hub, or a local dataset folder.
        image_shape: (C, H, W) that the images become: grey or RGB, resized where they differ.
        image_column, label_column: their names, where they are none of the usual ones.
        name: of the configuration, for a set that has several.
    """

    path: str
    image_shape: Sequence[int]
    image_column: str | None = None
    label_column: str | None = None
    name: str | None = None

    def load(self, split: Split) -> ImageSet:
        """Download (or open) and decode one split, and no file of any other.

        Raises:
            InputError: no such data set, no such split, or no such column.
        """
        dataset = self._open(split)
        columns = dataset.column_names
        images = _one_of(columns, (self.image_column,) if self.image_column else IMAGE_COLUMNS)
        labels = _one_of(columns, (self.label_column,) if self.label_column else LABEL_COLUMNS)
        return ImageSet(
            self._decode(dataset[images], len(dataset)), torch.as_tensor(np.array(dataset[labels]))
        )

    def _open(self, split: Split) -> "Dataset":
        # Heavy to import, and needed by those only who use it.
        import datasets

        try:
            files = datasets.load_dataset_builder(self.path).config.data_files or {}
            name = _one_of(list(files), SPLITS[split])
            # Asked for by split alone, `datasets` would read every split's files.
            return datasets.load_dataset(
                self.path, data_files={name: list(files[name])}, split=name
            )
        except InputError:
            raise
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise InputError(
                f"The data set '{self.path}' cannot be opened ({error}); for a local copy set "
                "data.source.path to a folder in Hugging Face's dataset layout."
            ) from error

    def _decode(self, pictures: Iterable[Image.Image], count: int) -> torch.Tensor:
        channels, height, width = self.image_shape
        out = torch.empty((count, channels, height, width), dtype=torch.uint8)
        for i, picture in enumerate(pictures):
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(picture))
            out[i] = pixels[None] if channels == 1 else pixels.permute(2, 0, 1)
        return out


def _one_of(found: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in found:
            return name
    raise InputError(f"None of {', '.join(wanted)} is in this data set; it has {', '.join(found)}.")
