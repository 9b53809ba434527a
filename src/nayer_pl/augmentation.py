"""Random crop and flip of a whole batch at once; differentiable, on any device, any dtype."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Shift every image by up to `padding` pixels (zeros move in), and mirror half of them.

    The same as RandomCrop(size, padding) and RandomHorizontalFlip, drawn per image.

    Args:
        padding: largest shift in pixels, in each direction.
        flip: mirror left and right with probability 1/2; wrong for digits and other writing.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype; `rng` must be on the images' device."""
        batch, _, height, width = images.shape
        rows = self._positions(batch, height, images.device, rng)
        columns = self._positions(batch, width, images.device, rng)
        if self.flip:
            mirrored = torch.rand(batch, 1, device=images.device, generator=rng) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        pad = self.padding
        padded = F.pad(images, (pad, pad, pad, pad))
        index = torch.arange(batch, device=images.device)[:, None, None]
        # Indexing moves the channels last; permuting back costs nothing.
        return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _positions(
        self, batch: int, size: int, device: torch.device, rng: torch.Generator | None
    ) -> Tensor:
        """Which `size` consecutive positions of a padded axis each image keeps: [batch, size]."""
        start = torch.randint(2 * self.padding + 1, (batch, 1), device=device, generator=rng)
        return start + torch.arange(size, device=device)
