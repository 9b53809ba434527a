"""Pictures in files: what every such source has in common, and a folder for each class."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from nayer_pl.data.batches import ImageSet, Split
from nayer_pl.data.decoding import Decoder, EncodedImages, ImageStream, OnCorrupt
from nayer_pl.data.shipped import class_names
from nayer_pl.errors import InputError
from nayer_pl.runtime.options import CheckedFields

SPLITS = {"train": ("train",), "evaluation": ("test", "validation", "valid", "val")}


@dataclass(frozen=True)
class PictureSource(CheckedFields, ABC):
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
        super().__post_init__()
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
        given = (self.train_split if split == "train" else self.evaluation_split) or SPLITS[split]
        return (given,) if isinstance(given, str) else tuple(given)


def first_found(names: str | Sequence[str], found: Sequence[str], kind: str) -> str:
    """The name, or the first of several, that is among `found`; else an InputError lists these."""
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name in found:
            return name
    listed = ", ".join(found[:20]) or "nothing"
    raise InputError(f"The data set has no {kind} {' or '.join(names)}; it has {listed}.")


SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"
)  # fmt: skip


@dataclass(frozen=True)
class FolderImages(PictureSource):
    """`path/train/CLASS/*.png` and `path/test/CLASS/*.png`, or `path/CLASS/*.png` alone.

    The evaluation split may also be called validation, valid or val; a folder without splits is
    an evaluation split. Class folders may hold further folders, and files that are no pictures.
    All options of `PictureSource`, and:

    Args:
        classes: names of the class folders in the order of their labels (see `class_names`); None
            for the sorted folders of the training split, or of the only split.

    Raises:
        InputError: an option is out of its range, or `classes` lists a folder twice.

    Example:
        >>> source = FolderImages("pets", image_shape=(3, 32, 32), classes=["cat", "dog"])
        >>> source.class_names()
        ['cat', 'dog']
    """

    classes: str | Sequence[Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:
            self.class_names()

    def find(self, split: Split) -> tuple[EncodedImages, Tensor]:
        """Picture files of a split and their labels.

        Raises:
            InputError: the folder has another layout, or a folder of an unknown class.
        """
        root, splits = self._layout()
        if splits:
            name = first_found(self.split_names(split), list(splits), "folder")
            folders = splits[name]
        elif split == "train":
            train, test = self.split_names("train")[0], self.split_names("evaluation")[0]
            raise InputError(
                f"'{root}' holds no splits; put training images into '{root}/{train}/CLASS/' and "
                f"those for evaluation into '{root}/{test}/CLASS/'."
            )
        else:
            folders = subfolders(root)
        classes = self.class_names()
        unknown = [folder for folder in folders if folder.name not in classes]
        if unknown:
            raise InputError(
                f"The folder '{unknown[0]}' is none of the {len(classes)} classes "
                f"({', '.join(classes[:5])}, ...); remove it, or make it a class: with a folder of "
                "that name among the training images, or in the option classes if that is given."
            )
        files: list[str] = []
        labels: list[int] = []
        for folder in folders:
            found = pictures_in(folder)
            files += found
            labels += [classes.index(folder.name)] * len(found)
        if not files:
            raise InputError(f"There are no images in the class folders of '{folders[0].parent}'.")
        return [(file, file) for file in files], torch.tensor(labels, dtype=torch.int64)

    @property
    def num_classes(self) -> int | None:
        """Number of class folders, if they define the labels; None if `classes` does."""
        return len(self.class_names()) if self.classes is None else None

    def class_names(self) -> list[str]:
        """The class folders in the order of their labels."""
        if self.classes is not None:
            names = class_names(self.classes)
            if len(set(names)) < len(names):
                raise InputError("The option classes lists a folder twice; list each once.")
            return names
        root, splits = self._layout()
        every = [folder for folders in splits.values() for folder in folders] or subfolders(root)
        train = [splits[name] for name in self.split_names("train") if name in splits]
        return sorted({folder.name for folder in (train[0] if train else every)})

    def _layout(self) -> tuple[Path, dict[str, list[Path]]]:
        """The folder, and the class folders of each of its splits."""
        if self.path is None:
            raise InputError(
                "No images are given: set path to a folder that holds one folder for each class."
            )
        root = Path(self.path).expanduser()
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"'{root}' {problem}; set path to a folder of images.")
        if not subfolders(root):
            raise InputError(
                f"'{root}' has no class folders; images are expected as '{root}/CLASS/FILE', or "
                f"'{root}/train/CLASS/FILE' and '{root}/test/CLASS/FILE'."
            )
        names = {*self.split_names("train"), *self.split_names("evaluation")}
        splits = {folder.name: subfolders(folder) for folder in subfolders(root)}
        # A folder "train" that holds no folders is a class: pictures of trains.
        found = {name: splits[name] for name in splits if name in names and splits[name]}
        if not found and (self.train_split or self.evaluation_split):
            first_found(self.split_names("evaluation"), [*splits], "folder")
        return root, found


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if _is_shown(entry))


def pictures_in(folder: str | Path) -> list[str]:
    """Picture files at any depth, sorted in each folder."""
    files: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            files.append(entry.path)
        elif _is_shown(entry):
            files += pictures_in(entry.path)
    return files


def _is_shown(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, neither hidden nor what macOS adds to archives."""
    return entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
