"""Random crop and flip of a whole batch at once; differentiable, on any device, any dtype."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nayer_pl.errors import require


@dataclass(frozen=True)
class RandomCropFlip:
    """Shift every image by up to `padding` pixels (zeros move in), and mirror half of them.

    The same as RandomCrop(size, padding) and RandomHorizontalFlip, drawn per image.

    Args:
        padding: largest shift in pixels, in each direction.
        flip: mirror left and right with probability 1/2; wrong for digits and other writing.

    Raises:
        InputError: a negative padding.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        require(self.padding >= 0, "data.augmentation.padding", "at least 0", self.padding)

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

    Args:
        images: [B, C, H, W].
        top, left: where the window begins in the padded image, int64 [B], 0 to 2 * pad.
        mirrored: which images, bool [B]; None for none.
        pad: pixels on each side.
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
