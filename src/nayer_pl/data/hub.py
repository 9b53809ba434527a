"""Image classification sets of the Hugging Face Hub, or a local folder in the same layout."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nayer_pl.data.batches import Split
from nayer_pl.data.decoding import EncodedImages
from nayer_pl.data.folder import SUFFIXES, PictureSource, first_found
from nayer_pl.errors import InputError
from nayer_pl.runtime.files import is_path

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, Features

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True)
class HubImages(PictureSource):
    """A data set of the Hub with an image column and a label column.

    `path` is a name on the Hub, or a local folder (such as a copy of the Hub's files). All options
    of `PictureSource`, and:

    Args:
        image_column: name of the image column; None for image or img.
        label_column: name of the label column; None for label, fine_label or labels.
        name: name of the configuration, for a set that has several.

    Example:
        >>> HubImages("uoft-cs/cifar10", image_shape=(3, 32, 32)).split_names("train")
        ('train',)
    """

    image_column: str | None = None
    label_column: str | None = None
    name: str | None = None

    def find(self, split: Split) -> tuple[EncodedImages, Tensor]:
        """Download (or open) one split.

        Raises:
            InputError: the data set, split or column does not exist.
        """
        dataset, name = self._open(split)
        images = first_found(self.image_column or IMAGE_COLUMNS, dataset.column_names, "column")
        column = self._label_column(dataset.features)
        labels = [-1 if label is None else label for label in dataset[column][:]]
        return _Rows(dataset, images, name), torch.tensor(labels, dtype=torch.int64)

    def class_names(self) -> list[str]:
        """The names of the label column, without reading an image.

        Raises:
            InputError: the data set does not exist, or does not name its classes.
        """
        import datasets

        features = self._features()
        column = self._label_column(features)
        if not isinstance(features[column], datasets.ClassLabel):
            raise InputError(
                f"The data set '{self.path}' does not name its classes; set class_names to a list "
                "or a file."
            )
        return list(features[column].names)

    def _label_column(self, features: "Features") -> str:
        column = first_found(self.label_column or LABEL_COLUMNS, list(features), "column")
        kind = str(getattr(features[column], "dtype", features[column]))
        if not kind.startswith(("int", "uint")):
            raise InputError(
                f"The column '{column}' of the data set '{self.path}' holds no class numbers "
                f"({kind}); name the one that does, label_column=NAME."
            )
        return column

    def _open(self, split: Split) -> tuple["Dataset", str]:
        """A split, and its name in this data set."""
        # Imported here because it is slow and only these images need it.
        import datasets

        with self._clear_errors():
            try:
                files, name = self._files(self.split_names(split))
                options = {"name": self.name, "data_files": files, "split": name}
                return datasets.load_dataset(self._location(), **options), name
            except Exception:
                prepared = self._prepared(split)
                if prepared is None:
                    raise
                log.warning("'%s' is not reached: using what was downloaded before.", self.path)
                return prepared

    def _features(self) -> "Features":
        import datasets

        with self._clear_errors():
            try:
                features = self._builder().info.features  # from the data set's card
                if features is None:
                    names = [*self.split_names("evaluation"), *self.split_names("train")]
                    files, name = self._files(names)
                    features = self._builder(files).as_streaming_dataset(split=name).features
                return features or datasets.Features()
            except Exception:
                prepared = self._prepared("evaluation") or self._prepared("train")
                if prepared is None:
                    raise
                return prepared[0].features

    def _files(self, names: Sequence[str]) -> tuple[dict[str, list[str]], str]:
        """The files of the first of these splits: without them all splits would be read."""
        files = self._builder().config.data_files or {}
        name = first_found(names, [str(key) for key in files], "split")
        return {name: list(files[name])}, name

    def _builder(self, files: dict[str, list[str]] | None = None) -> "DatasetBuilder":
        import datasets

        place = self._location()
        builder = datasets.load_dataset_builder(place, self.name, data_files=files)
        if builder.info.builder_name != "imagefolder":
            return builder
        # This one numbers the classes of each split on its own.
        if Path(place).is_dir():
            raise InputError(
                f"'{self.path}' is a folder of picture files; read it with nayer_pl.FolderImages."
            )
        splits = (builder.config.data_files or {}).values()
        if len({_class_folders(split) for split in splits}) > 1:
            raise InputError(
                f"'{self.path}' is made of picture files, and its splits do not have the same "
                "class folders; download it, set path to that folder, and read it with "
                "nayer_pl.FolderImages."
            )
        return builder

    def _prepared(self, split: Split) -> tuple["Dataset", str] | None:
        """The split that an earlier run downloaded, for a run without a network."""
        import datasets
        from datasets.naming import camelcase_to_snakecase

        owner, _, name = (self.path or "").rpartition("/")
        folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else name
        root = Path(datasets.config.HF_DATASETS_CACHE) / folder
        if Path(self._location()).is_dir() or not root.is_dir():
            return None
        for name_here in self.split_names(split):
            pattern = f"{self.name or ''}*/*/*/*-{name_here}"
            files = [*root.glob(f"{pattern}.arrow"), *root.glob(f"{pattern}-?????-of-?????.arrow")]
            if files:
                newest = max(files, key=lambda path: path.stat().st_mtime).parent
                parts = [str(file) for file in sorted(files) if file.parent == newest]
                dataset = datasets.concatenate_datasets([*map(datasets.Dataset.from_file, parts)])
                return dataset, name_here
        return None

    def _location(self) -> str:
        if self.path is None:
            raise InputError("No data set is given: set path to a name on the Hub or a folder.")
        place = Path(self.path).expanduser()
        if place.is_file():
            raise InputError(f"'{place}' is a file; set path to the folder of a data set.")
        if is_path(self.path) and not place.is_dir():
            raise InputError(
                f"There is no folder '{place}'; set path to a folder, or to a name on the Hub."
            )
        return str(place)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn any error of `datasets`, its downloads and file formats into an InputError."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            lines = (str(cause).strip() or type(cause).__name__).splitlines()
            reason = " ".join(line.strip() for line in lines[:2]).rstrip(".")
            raise InputError(
                f"The data set '{self.path}' cannot be opened ({reason}); for a local copy set "
                "path to a folder in the Hub's layout."
            ) from error


def _class_folders(files: Sequence[Any]) -> frozenset[str]:
    """The names of the folders in which these pictures lie."""
    paths = [PurePosixPath(str(file)) for file in files]
    return frozenset(path.parent.name for path in paths if path.suffix.lower() in SUFFIXES)


class _Rows:
    """The image column of a data set."""

    def __init__(self, dataset: "Dataset", column: str, split: str) -> None:
        from datasets import Image

        pictures = dataset.select_columns([column])
        self.dataset = pictures.cast_column(column, Image(decode=False))
        self.column, self.split = column, split

    def __getitem__(self, i: int) -> tuple[str, str | BytesIO]:
        row = self.dataset[i][self.column] or {}
        name = f"row {i} of the split '{self.split}'"
        if row.get("path"):
            name += f", {row['path']}"
        return name, BytesIO(row["bytes"]) if row.get("bytes") else row.get("path") or ""
