"""From encoded pictures (PNG, JPEG, ...) to batches of images, decoded in worker processes."""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from random import Random
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from nayer_pl.data.batches import ImageSet
from nayer_pl.errors import InputError

log = logging.getLogger(__name__)

OnCorrupt = Literal["stop", "skip"]

MAX_NAMED = 10  # damaged pictures that are named; more are only counted


@dataclass(frozen=True)
class Decoder:
    """Decodes a picture upright, in gray or RGB, and crops it.

    Args:
        image_shape: (C, H, W) that every picture becomes, C = 1 or 3.
        crop: share of the height and width that the center crop keeps; see `center_crop`.
        random: a random crop instead, as in training; see `random_crop`.
    """

    image_shape: tuple[int, int, int]
    crop: float = 1.0
    random: bool = False

    def __call__(self, encoded: str | BytesIO, key: str = "") -> Tensor:
        """File name or bytes -> uint8 [C, H, W], or errors of PIL; `key` seeds the random crop."""
        channels, height, width = self.image_shape
        with Image.open(encoded) as opened:
            upright = eight_bits(ImageOps.exif_transpose(opened), opened.format == "PNG")
            picture = upright.convert("L" if channels == 1 else "RGB")
        if self.random:
            picture = random_crop(picture, height, width, Random(key))
        else:
            picture = center_crop(picture, height, width, self.crop)
        pixels = torch.from_numpy(np.array(picture))
        return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def eight_bits(picture: Image.Image, png: bool) -> Image.Image:
    """Convert 16-bit gray values to 8 bits of the same brightness; PIL would clip them at 255.

    Raises:
        ValueError: the pixels are numbers of unknown range.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and png):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of mode {picture.mode}; make them 8 or 16 bits")
    return picture


def center_crop(picture: Image.Image, height: int, width: int, crop: float = 1.0) -> Image.Image:
    """Resize so that (height, width) / `crop` just fits in, and cut out the center.

    A picture of this size stays as it is. `crop` = 0.875 for 224 pixels is the usual evaluation on
    ImageNet: shorter side 256, center 224.
    """
    if picture.size == (width, height):
        return picture
    tall, wide = round(height / crop), round(width / crop)
    if wide * picture.height >= tall * picture.width:
        size = (wide, wide * picture.height // picture.width)
    else:
        size = (tall * picture.width // picture.height, tall)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + width, top + height))


def random_crop(picture: Image.Image, height: int, width: int, rng: Random) -> Image.Image:
    """Cut out a random part and resize it to (height, width) (Szegedy et al., 2015, section 6).

    Its area is 8 to 100 % of the picture's, its aspect ratio 3/4 to 4/3 of width / height; if no
    such part is found in ten attempts, it is the largest center of the ratio width / height.
    """
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * picture.width * picture.height
        ratio = width / height * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= picture.width and 0 < tall <= picture.height:
            left = rng.randint(0, picture.width - wide)
            top = rng.randint(0, picture.height - tall)
            part = picture.crop((left, top, left + wide, top + tall))
            return part.resize((width, height), Image.Resampling.BILINEAR)
    return center_crop(picture, height, width)


class EncodedImages(Protocol):
    """Encoded pictures of a split: by index the name in messages, and the file name or bytes."""

    def __getitem__(self, i: int, /) -> tuple[str, str | BytesIO]: ...


class ImageStream:
    """A split that stays on disk and is decoded batch by batch.

    Args:
        encoded: the pictures.
        labels: their labels, int64 [N].
        decoder: turns a picture into an image.
        corrupt: "stop" at a picture that cannot be read, or "skip" it: leave it out and log it.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        encoded: EncodedImages,
        labels: Tensor,
        decoder: Decoder,
        corrupt: OnCorrupt = "stop",
        workers: int = 0,
    ) -> None:
        self.encoded, self.labels, self.decoder = encoded, labels, decoder
        self.corrupt, self.workers = corrupt, workers
        self._failed: set[str] = set()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.decoder.image_shape

    def read(self, batches: Sequence[Tensor], key: str = "") -> Iterator[list[Tensor]]:
        """Yield [images, labels] of each tensor of indices, in order, decoded ahead of time.

        Raises:
            InputError: a picture cannot be read and `corrupt` is "stop", or a whole batch cannot.
        """
        known = len(self._failed)
        numbers: Any = [index.tolist() for index in batches]
        loader: DataLoader[Any] = DataLoader(
            numbers,
            batch_size=None,
            num_workers=min(self.workers, len(batches)),
            collate_fn=partial(self._decode, key),
            generator=torch.Generator(),  # leaves the global one alone
        )
        ready: list[Tensor] = []
        for images, labels, failures in loader:
            if ready:
                yield ready
            self._report(failures)
            if not len(labels):
                raise InputError(
                    f"No image of a whole batch of {len(failures)} can be read, such as "
                    f"{failures[0]}; repair the data set, or use a larger batch."
                )
            ready = [images, labels]
        # Before the last batch: a trainer asks for no more, and workers would stay alive.
        self._report_count(known)
        if ready:
            yield ready

    def decoded(self) -> ImageSet:
        """Decode the whole split into memory.

        Raises:
            InputError: pictures cannot be read and `corrupt` is "stop", or none can.
        """
        count = len(self.labels)
        hidden = getattr(rank_zero_only, "rank", 0) != 0 or None  # None: also in a log file
        index: Any = tqdm(range(count), "Decoding", delay=3, disable=hidden, file=sys.stdout)
        images, labels, failures = self._decode("", index)
        self._report(failures)
        if count and not len(labels):
            raise InputError(f"None of the {count:,} images can be read, such as {failures[0]}.")
        self._report_count(0)
        return ImageSet(images, labels)

    def _decode(self, key: str, index: Sequence[int]) -> tuple[Tensor, Tensor, list[str]]:
        """Images uint8 [B, C, H, W], labels int64 [B], and what cannot be read, and why."""
        images = torch.empty((len(index), *self.image_shape), dtype=torch.uint8)
        kept: list[int] = []
        failures: list[str] = []
        for i in index:
            name, content = self.encoded[i]
            try:
                images[len(kept)].copy_(self.decoder(content, f"{key} {i}"))
                kept.append(i)
            except UnidentifiedImageError:
                failures.append(f"{name} (no known image format)")
            except Exception as error:  # PIL's parsers raise many kinds on damaged files
                failures.append(f"{name} ({str(error) or type(error).__name__})")
        return images[: len(kept)], self.labels[kept], failures

    def _report(self, failures: Sequence[str]) -> None:
        """Name the pictures that were not known to be damaged."""
        new = [text for text in failures if text not in self._failed]
        if new and self.corrupt == "stop":
            more = f" (and {len(new) - 1:,} more)" if len(new) > 1 else ""
            raise InputError(
                f"This image cannot be read: {new[0]}{more}; replace it, or leave out all such "
                "images with corrupt=skip."
            )
        for text in new[: max(0, MAX_NAMED - len(self._failed))]:
            log.warning("Left out, because it cannot be read: %s", text)
        self._failed.update(new)

    def _report_count(self, known: int) -> None:
        if len(self._failed) > known:
            log.warning(
                "%s of %s images are left out, because they cannot be read.",
                f"{len(self._failed):,}", f"{len(self.labels):,}",
            )  # fmt: skip
