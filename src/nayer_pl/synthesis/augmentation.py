"""Augmentation of whole batches: differentiable, on any device, with a generator of its own.

Anything that is called with images [B, C, H, W] and a `torch.Generator` on their device can take
the place of these. Augmentations of the student's batches get uint8 images from the bank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from pydantic import NonNegativeInt
from torch import Tensor

from nayer_pl.errors import InputError
from nayer_pl.runtime.options import CheckedFields

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Images [B, C, H, W] and random numbers -> images of the same shape."""


@dataclass(frozen=True)
class RandomCropFlip(CheckedFields):
    """Shift every image by up to `padding` pixels (zeros move in), and mirror half of them.

    The same as torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, drawn per image.

    Args:
        padding: Largest shift in pixels, in each direction.
        flip: Mirror left and right with probability 1/2; wrong for digits and other writing.

    Example:
        >>> images = torch.ones(8, 1, 4, 4, dtype=torch.uint8)
        >>> RandomCropFlip(padding=1)(images, torch.Generator()).shape
        torch.Size([8, 1, 4, 4])
    """

    padding: NonNegativeInt = 4
    flip: bool = True

    def __call__(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype, channels last in memory.

        `rng` must be on the images' device.
        """
        batch, device, pad = len(images), images.device, self.padding
        top = torch.randint(2 * pad + 1, (batch,), device=device, generator=rng)
        left = torch.randint(2 * pad + 1, (batch,), device=device, generator=rng)
        mirrored = None
        if self.flip:
            mirrored = torch.rand(batch, device=device, generator=rng) < 0.5
        return _CropAndMirror.apply(images, top, left, mirrored, pad)


@dataclass(frozen=True)
class RollFlip(CheckedFields):
    """Roll all images by the same random shift, and mirror all or none of them.

    DeepInversion's jitter (Yin et al., 2020, arXiv 1912.08795).

    Args:
        jitter: Largest shift in pixels, in each direction.
        flip: Mirror the batch left and right with probability 1/2; wrong for digits.

    Example:
        >>> images = torch.arange(4.0).view(1, 1, 2, 2)
        >>> RollFlip(jitter=1)(images, torch.Generator()).sum()
        tensor(6.)
    """

    jitter: NonNegativeInt = 2
    flip: bool = True

    def __call__(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
        # Shifts stay on the device: reading them would wait for it at every step.
        limits = -self.jitter, self.jitter + 1
        shifts = torch.randint(*limits, (2,), device=images.device, generator=rng)
        rows, columns = (rows - shifts[0]) % len(rows), (columns - shifts[1]) % len(columns)
        if self.flip:
            mirrored = torch.rand((), device=images.device, generator=rng) < 0.5
            columns = torch.where(mirrored, columns.flip(0), columns)
        return images.index_select(2, rows).index_select(3, columns)


Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class RandomResizedPart(CheckedFields):
    """A random part of every image, enlarged to the whole image, and half of them mirrored.

    As torchvision's RandomResizedCrop with bilinear interpolation, but a part may begin between
    two pixels, and sides longer than the image are cut. Two products with small matrices, so that
    the gradient is the same on every run, other than that of `grid_sample` on a GPU.

    Args:
        area: Smallest and largest share of an image; width : height is 3 : 4 to 4 : 3.
        flip: Mirror left and right with probability 1/2.

    Example:
        >>> RandomResizedPart()(torch.ones(2, 1, 4, 4), torch.Generator()).mean()
        tensor(1.)
    """

    area: tuple[Share, Share] = (0.25, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.area[0] > self.area[1]:
            raise InputError(
                f"The area of a part must be two shares, the smaller first, not {self.area}."
            )

    def __call__(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Floats [B, C, H, W] -> the same shape."""

        def draw(low: float, high: float) -> Tensor:
            return images.new_empty(len(images)).uniform_(low, high, generator=rng)

        height, width = images.shape[2:]
        side = draw(*self.area).sqrt()
        stretch = draw(-math.log(4 / 3) / 2, math.log(4 / 3) / 2).exp()
        tall, wide = (side / stretch).clamp(max=1) * height, (side * stretch).clamp(max=1) * width
        rows = _resampling(draw(0, 1) * (height - tall), tall, height)
        columns = _resampling(draw(0, 1) * (width - wide), wide, width)
        if self.flip:
            columns = torch.where(draw(-1, 1)[:, None, None] < 0, columns.flip(1), columns)
        return torch.einsum("byh,bchw,bxw->bcyx", rows, images, columns)


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices that enlarge parts of a line of `size` pixels to the whole line, bilinearly.

    Part b has `length[b]` pixels from `start[b]`, both [B]. Row i of its matrix, [B, size, size],
    is how much of each pixel is in the new pixel i.
    """
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    inside = ((pixel + 0.5) * length[:, None] / size - 0.5).clamp(min=0)
    place = start[:, None] + torch.minimum(inside, length[:, None] - 1)
    return (1 - (place[..., None] - pixel).abs()).clamp(min=0)


class _CropAndMirror(torch.autograd.Function):
    """`crop_and_mirror` with a gradient that costs as little as the images do."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor | None, pad: int
    ) -> Tensor:
        ctx.save_for_backward(top, left, mirrored)
        ctx.pad = pad
        return crop_and_mirror(images, top, left, mirrored, pad)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        top, left, mirrored = ctx.saved_tensors
        # What moved right moves back left; but mirrored first, as here, left is right.
        back = 2 * ctx.pad - left
        back = back if mirrored is None else torch.where(mirrored, left, back)
        moved = crop_and_mirror(gradient, 2 * ctx.pad - top, back, mirrored, ctx.pad)
        return moved, None, None, None, None


def crop_and_mirror(
    images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor | None, pad: int
) -> Tensor:
    """Pad with zeros, cut a window of the old size out of each image, and mirror some of them.

    Windows begin in row `top` and column `left` of the padded images, int64 [B], 0 to 2 * pad;
    `mirrored` says which images to mirror, bool [B], or is None for none.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()
    rows, columns = height + 2 * pad, width + 2 * pad
    # A window may begin at any pixel but the last ones. Seen so, index_select copies whole rows of
    # it; indexing with rows and columns copies one pixel at a time, which takes the CPU far longer.
    starts = batch * rows * columns - (height - 1) * columns - width + 1
    strides = (channels, columns * channels, channels, 1)
    windows = padded.as_strided((starts, height, width, channels), strides)
    image = torch.arange(batch, device=images.device)
    cropped = windows.index_select(0, (image * rows + top) * columns + left)
    if mirrored is not None:
        both = torch.cat([cropped, cropped.flip(2)])
        cropped = both.index_select(0, image + batch * mirrored)
    return cropped.permute(0, 3, 1, 2)
