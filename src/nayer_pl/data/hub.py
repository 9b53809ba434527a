"""Image classification sets of the Hugging Face Hub, or a local folder in the same layout."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nayer_pl.data.folder import SUFFIXES
from nayer_pl.data.images import Split
from nayer_pl.data.source import PictureSource, one_of
from nayer_pl.data.stream import Encoded
from nayer_pl.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, Features

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True)
class HubImages(PictureSource):
    """A set with an image column and a label column.

    `path` is a name on the Hub, or a local dataset folder (such as a copy of the Hub's files).

    Args:
        image_column, label_column: their names, where they are none of the usual ones.
        name: of the configuration, for a set that has several.
    """

    image_column: str | None = None
    label_column: str | None = None
    name: str | None = None

    def find(self, split: Split) -> tuple[Encoded, Tensor]:
        """Download (or open) one split.

        Raises:
            InputError: no such data set, no such split, or no such column.
        """
        dataset, name = self._open(split)
        images = one_of(dataset.column_names, self._columns("image"), "column")
        column = self._label_column(dataset.features)
        labels = [-1 if label is None else label for label in dataset[column][:]]
        return _Rows(dataset, images, name), torch.tensor(labels, dtype=torch.int64)

    def class_names(self) -> list[str]:
        """The names of the label column, without reading an image.

        Raises:
            InputError: no such data set, or it does not name its classes.
        """
        import datasets

        features = self._features()
        column = self._label_column(features)
        if not isinstance(features[column], datasets.ClassLabel):
            raise InputError(
                f"The data set '{self.path}' does not name its classes; set data.class_names to a "
                "list or a file."
            )
        return list(features[column].names)

    def _columns(self, kind: str) -> tuple[str, ...]:
        given = self.image_column if kind == "image" else self.label_column
        return (given,) if given else IMAGE_COLUMNS if kind == "image" else LABEL_COLUMNS

    def _label_column(self, features: "Features") -> str:
        column = one_of(list(features), self._columns("label"), "column")
        kind = str(getattr(features[column], "dtype", features[column]))
        if not kind.startswith(("int", "uint")):
            raise InputError(
                f"The column '{column}' of the data set '{self.path}' holds no class numbers "
                f"({kind}); name the one that does, data.source.label_column=NAME."
            )
        return column

    def _open(self, split: Split) -> tuple["Dataset", str]:
        """A split, and what it is called here."""
        # Heavy to import, and needed by those only who use it.
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
        name = one_of([str(key) for key in files], names, "split")
        return {name: list(files[name])}, name

    def _builder(self, files: dict[str, list[str]] | None = None) -> "DatasetBuilder":
        import datasets

        place = self._location()
        builder = datasets.load_dataset_builder(place, self.name, data_files=files)
        if builder.info.builder_name == "imagefolder":  # it numbers the classes of each split anew
            if Path(place).is_dir():
                raise InputError(
                    f"'{self.path}' is a folder of picture files; read it with "
                    "data.source._target_=nayer_pl.FolderImages."
                )
            if not _same_classes(builder.config.data_files or {}):
                raise InputError(
                    f"'{self.path}' is made of picture files, and its splits do not have the same "
                    "class folders; download it, set data.path to that folder, and read it with "
                    "data.source._target_=nayer_pl.FolderImages."
                )
        return builder

    def _prepared(self, split: Split) -> tuple["Dataset", str] | None:
        """What an earlier run downloaded, for one without a network."""
        import datasets
        from datasets.naming import camelcase_to_snakecase

        owner, _, name = (self.path or "").rpartition("/")
        folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else name
        root = Path(datasets.config.HF_DATASETS_CACHE) / folder
        if Path(self._location()).is_dir() or not root.is_dir():
            return None
        for wanted in self.split_names(split):
            first = [*root.glob(f"{self.name or ''}*/*/*/*-{wanted}.arrow")]
            first += root.glob(f"{self.name or ''}*/*/*/*-{wanted}-00000-of-*.arrow")
            if first:
                newest = max(first, key=lambda path: path.stat().st_mtime).parent
                files = sorted(newest.glob(f"*-{wanted}*.arrow"))
                parts = [datasets.Dataset.from_file(str(file)) for file in files]
                return datasets.concatenate_datasets(parts), wanted
        return None

    def _location(self) -> str:
        if self.path is None:
            raise InputError("Which data set? Set data.path to a name on the Hub or a folder.")
        place = Path(self.path).expanduser()
        if place.is_file():
            raise InputError(f"'{place}' is a file; set data.path to the folder of a data set.")
        local = place.is_absolute() or self.path.startswith(".") or len(place.parts) > 2
        if local and not place.is_dir():
            raise InputError(f"There is no folder '{place}'; set data.path to one, or to a name.")
        return str(place)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """One sentence for whatever `datasets`, its downloads and its file formats raise."""
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
                "data.path to a folder in the Hub's layout."
            ) from error


def _same_classes(files: Mapping[Any, Sequence[str]]) -> bool:
    """Whether the pictures of all splits lie in folders of the same names."""
    paths = [[PurePosixPath(str(file)) for file in split] for split in files.values()]
    folders = [
        frozenset(path.parent.name for path in split if path.suffix.lower() in SUFFIXES)
        for split in paths
    ]
    return len(set(folders)) <= 1


class _Rows:
    """The image column of a data set."""

    def __init__(self, dataset: "Dataset", column: str, split: str) -> None:
        from datasets import Image

        pictures = dataset.select_columns([column])
        self.dataset = pictures.cast_column(column, Image(decode=False))
        self.column, self.split = column, split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[str, str | BytesIO]:
        row = self.dataset[i][self.column] or {}
        name = f"row {i} of the split '{self.split}'"
        if row.get("path"):
            name += f", {row['path']}"
        return name, BytesIO(row["bytes"]) if row.get("bytes") else row.get("path") or ""
