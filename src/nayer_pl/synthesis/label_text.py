"""Label-text embeddings (LTE): one constant, meaningful vector per class (NAYER, section 3.2)."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor, from_numpy

from nayer_pl.errors import InputError
from nayer_pl.runtime.options import CheckedFields

log = logging.getLogger(__name__)


class NameEncoder(Protocol):
    """Anything that turns class names into vectors."""

    def embed(self, names: Sequence[str]) -> Tensor:
        """Class names -> [len(names), d], in their order."""
        ...


@dataclass(frozen=True)
class LabelText(CheckedFields):
    """The label text of a data set: its class names, and what encodes them.

    Args:
        names: Class names in the order of the labels.
        encoder: Turns names into vectors: a `TextEncoder`, an `EmbeddingFile`, or your own.

    Raises:
        InputError: An option has a value that is not allowed.

    Example:
        >>> class Lengths:
        ...     def embed(self, names):
        ...         return torch.tensor([[float(len(name))] for name in names])
        >>> LabelText(["cat", "horse"], Lengths()).embeddings()
        tensor([[3.],
                [5.]])
    """

    names: Sequence[str]
    encoder: NameEncoder

    def embeddings(self) -> Tensor:
        """The LTE, float32 [num_classes, d]; a `TextEncoder` keeps it on disk.

        Raises:
            InputError: The names cannot be encoded, or their embeddings are not finite or all the
                same.
        """
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            log.warning(
                "Classes with the same name have the same embedding and cannot be told apart by "
                "it: %s.", ", ".join(twice),
            )  # fmt: skip
        embeddings = self.encoder.embed(self.names)
        for name, row in zip(self.names, embeddings, strict=False):
            if not row.isfinite().all():
                raise InputError(
                    f"The label text of '{name}' holds NaN or infinity; choose another encoder, or "
                    "repair its file of embeddings."
                )
        if len(set(self.names)) > 1 and (embeddings == embeddings[:1]).all():
            raise InputError(
                "All classes have the same label text, so it tells none from another; choose "
                "another encoder, or repair it (a model without its tokenizer's files does that)."
            )
        return embeddings


@dataclass(frozen=True)
class EmbeddingFile(CheckedFields):
    """Embeddings that were computed elsewhere, one row per class.

    Args:
        path: `.safetensors` (its only tensor, or the one called `embeddings` or `lte`) or `.npy`.
        names: Text file with the class name of each row. With it, or with `names` in the metadata
            of a `.safetensors` file, rows are found by class name; without, row i is the embedding
            of label i.

    Raises:
        InputError: An option has a value that is not allowed.

    Example:
        >>> from safetensors.torch import save_file
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> save_file({"lte": rows}, "lte.safetensors", {"names": '["cat", "dog"]'})
        >>> EmbeddingFile("lte.safetensors").embed(["dog"])
        tensor([[3., 4.]])
    """

    path: str | Path
    names: str | Path | None = None

    def embed(self, names: Sequence[str]) -> Tensor:
        """Read the embeddings of these classes, in the order of the names: float32 [len(names), d].

        Raises:
            InputError: The file cannot be read, has another number of rows, or has no row for a
                name.
        """
        rows, row_names = self._read()
        if len(rows) != len(row_names or names):
            raise InputError(
                f"'{self.path}' holds {len(rows)} embeddings for {len(row_names or names)} class "
                "names; there must be one row per class."
            )
        if row_names is None or [*map(_plain, row_names)] == [*map(_plain, names)]:
            return rows
        row_of = {_plain(name): i for i, name in enumerate(row_names)}
        missing = [name for name in names if _plain(name) not in row_of]
        if missing:
            raise InputError(
                f"'{self.path}' has no embedding for {len(missing)} class names, such as "
                f"'{missing[0]}'; its first rows are named {', '.join(row_names[:3])}."
            )
        return rows[[row_of[_plain(name)] for name in names]]

    def _read(self) -> tuple[Tensor, list[str] | None]:
        path = Path(self.path)
        for option, file in (("path", path), ("names", self.names)):
            if file is not None and not Path(file).is_file():
                raise InputError(f"There is no file '{file}'; set {option} to one that exists.")
        names = None
        try:
            if path.suffix == ".npy":
                rows = from_numpy(np.load(path, allow_pickle=False)).float()
            else:
                with safe_open(path, framework="pt") as file:
                    keys = list(file.keys())
                    key = next((k for k in ("embeddings", "lte") if k in keys), keys[0])
                    rows = file.get_tensor(key).float()
                    names = _listed((file.metadata() or {}).get("names", "null"))
            if self.names is not None:
                names = Path(self.names).read_text(encoding="utf-8").splitlines()
        except (OSError, EOFError, ValueError, TypeError, SafetensorError, IndexError) as error:
            raise InputError(
                f"'{path}' cannot be read as embeddings ({error}); give a .npy or .safetensors "
                "file of numbers, a row per class."
            ) from error
        if rows.ndim != 2:
            raise InputError(f"'{path}' must hold [classes, d] numbers, not {list(rows.shape)}.")
        return rows, names


def _listed(text: str) -> list[str] | None:
    """Names in the metadata of a file, which are a JSON list or null."""
    try:
        names = json.loads(text)
    except ValueError:
        names = text
    if not isinstance(names, list | None):
        raise ValueError("the names in its metadata are not a JSON list")
    return names


def _plain(name: str) -> str:
    """A name without what joins its words: "Ice-Cream" -> "ice cream"."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
