"""From an encoded picture (PNG, JPEG, ...) to the pixels of an image of the wanted shape."""

import math
from dataclasses import dataclass
from io import BytesIO
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


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
        """File name or bytes -> uint8 [C, H, W]; `key` seeds the random crop.

        Raises whatever PIL does where a picture is damaged.
        """
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
    """Grey values of 16 bits as 8 of the same brightness; PIL would cut them off at 255.

    Raises:
        ValueError: numbers whose range nobody knows.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and png):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of mode {picture.mode}; make them 8 or 16 bits")
    return picture


def center_crop(picture: Image.Image, height: int, width: int, crop: float = 1.0) -> Image.Image:
    """Resize so that (height, width) / `crop` just fits in, and cut out the center.

    A picture that has the wanted size already stays as it is. `crop` = 0.875 for 224 pixels is
    the usual evaluation on ImageNet: shorter side 256, center 224.
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

    Its area is 8 to 100 % of the picture's, its aspect ratio 3/4 to 4/3 of the wanted one; where
    no such part is found in ten attempts, it is the largest center of the wanted ratio.
    """
    for _ in range(ATTEMPTS):
        area = rng.uniform(*AREA) * picture.width * picture.height
        ratio = width / height * math.exp(rng.uniform(*map(math.log, RATIO)))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= picture.width and 0 < tall <= picture.height:
            left = rng.randint(0, picture.width - wide)
            top = rng.randint(0, picture.height - tall)
            part = picture.crop((left, top, left + wide, top + tall))
            return part.resize((width, height), Image.Resampling.BILINEAR)
    return center_crop(picture, height, width)
