"""A split that stays on disk, and is decoded batch by batch."""

import logging
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Literal, NamedTuple, Protocol

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nayer_pl.data.images import ImageSet
from nayer_pl.data.pictures import Decoder
from nayer_pl.errors import InputError

log = logging.getLogger(__name__)

NAMED = 10  # damaged images that are named; more are only counted
LARGE = 2e9  # bytes in memory that are worth a remark

Corrupt = Literal["stop", "skip"]


class Encoded(Protocol):
    """The encoded pictures of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> tuple[str, str | BytesIO]:
        """What to call picture `i` in a message, and what PIL opens: a file name or bytes."""
        ...


class Decoded(NamedTuple):
    """A batch, without the pictures that could not be read."""

    images: Tensor
    labels: Tensor
    bad: list[str]
    """The name of each picture that could not be read, and why."""


class ImageStream:
    """A split of encoded pictures.

    Args:
        encoded: the pictures.
        labels: theirs, int64 [N].
        decoder: what makes an image of a picture.
        corrupt: "stop" at a picture that cannot be read, or "skip" it: it is named, and left out
            of its batch.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: Tensor,
        decoder: Decoder,
        corrupt: Corrupt = "stop",
        workers: int = 0,
    ) -> None:
        self.encoded, self.labels, self.decoder = encoded, labels, decoder
        self.corrupt, self.workers = corrupt, workers
        self._bad: set[str] = set()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.decoder.image_shape

    def read(self, batches: Sequence[Tensor], key: str = "") -> Iterator[list[Tensor]]:
        """Yield [images, labels] of each tensor of indices, in order, decoded ahead of time.

        Raises:
            InputError: a picture cannot be read and `corrupt` is "stop", or a whole batch cannot.
        """
        known = len(self._bad)
        work = _Work(self.encoded, self.labels, self.decoder, batches, key)
        loader = DataLoader(
            work,
            batch_size=None,
            num_workers=min(self.workers, len(batches)),
            generator=torch.Generator(),  # leaves the global one alone
        )
        ready: list[Tensor] = []
        for images, labels, bad in loader:
            if ready:
                yield ready
            self._report(bad)
            if not len(labels):
                raise InputError(
                    f"No image of a whole batch of {len(bad)} can be read, such as {bad[0]}; "
                    "repair the data set, or use a larger batch."
                )
            ready = [images, labels]
        # Before the last batch: who knows the length asks for no more, and workers would linger.
        self._count(known)
        if ready:
            yield ready

    def decoded(self) -> ImageSet:
        """Decode it all into memory.

        Raises:
            InputError: pictures cannot be read and `corrupt` is "stop", or none can.
        """
        count, shape = len(self.labels), self.decoder.image_shape
        size = count * torch.Size(shape).numel()
        if size > LARGE:
            log.info(
                "Decoding %s images into %.1f GB of memory; data.in_memory=false leaves them on "
                "disk.", f"{count:,}", size / 1e9,
            )  # fmt: skip
        images = torch.empty((count, *shape), dtype=torch.uint8)
        kept: list[int] = []
        bad = []
        hidden = getattr(rank_zero_only, "rank", 0) != 0 or None  # None: also in a log file
        for i in tqdm(range(count), "Decoding", delay=3, disable=hidden, file=sys.stdout):
            problem = _decode(self.encoded, i, self.decoder, "", images[len(kept)])
            if problem:
                bad.append(problem)
            else:
                kept.append(i)
        self._report(bad)
        if count and not kept:
            raise InputError(f"None of the {count:,} images can be read, such as {bad[0]}.")
        self._count(0)
        return ImageSet(images[: len(kept)], self.labels[kept])

    def _report(self, bad: Sequence[str]) -> None:
        """Name what was not known to be damaged."""
        new = [text for text in bad if text not in self._bad]
        if new and self.corrupt == "stop":
            more = f" (and {len(new) - 1:,} more)" if len(new) > 1 else ""
            raise InputError(
                f"This image cannot be read: {new[0]}{more}; replace it, or leave out all such "
                "images with data.corrupt=skip."
            )
        for text in new[: max(0, NAMED - len(self._bad))]:
            log.warning("Left out, because it cannot be read: %s", text)
        self._bad.update(new)

    def _count(self, known: int) -> None:
        if len(self._bad) > known:
            log.warning(
                "%s of %s images are left out, because they cannot be read.",
                f"{len(self._bad):,}", f"{len(self.labels):,}",
            )  # fmt: skip


class _Work(Dataset[Decoded]):
    """Item i is batch i, decoded: what a worker process does at a time."""

    def __init__(
        self,
        encoded: Encoded,
        labels: Tensor,
        decoder: Decoder,
        batches: Sequence[Tensor],
        key: str,
    ) -> None:
        self.encoded, self.labels, self.decoder = encoded, labels, decoder
        self.batches, self.key = batches, key

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Decoded:
        index = self.batches[i].tolist()
        images = torch.empty((len(index), *self.decoder.image_shape), dtype=torch.uint8)
        kept: list[int] = []
        bad = []
        for j in index:
            problem = _decode(self.encoded, j, self.decoder, f"{self.key} {j}", images[len(kept)])
            if problem:
                bad.append(problem)
            else:
                kept.append(j)
        return Decoded(images[: len(kept)], self.labels[kept], bad)


def _decode(encoded: Encoded, i: int, decoder: Decoder, key: str, out: Tensor) -> str | None:
    """Decode picture `i` into `out`, or say why that cannot be."""
    name, content = encoded[i]
    try:
        out.copy_(decoder(content, key))
    except UnidentifiedImageError:
        return f"{name} (no known image format)"
    except Exception as error:  # PIL's parsers raise many kinds on damaged files
        return f"{name} ({str(error) or type(error).__name__})"
    return None
