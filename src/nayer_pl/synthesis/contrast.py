"""Telling images apart: a second view of each, and the loss of who is whose."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(parts: Tensor, wholes: Tensor, new: int, temperature: float) -> Tensor:
    """InfoNCE with cosine similarities: among all images, a part should find its own; a scalar.

    The mean over new images plus the mean over earlier ones.

    Args:
        parts, wholes: unit vectors [N, d] of the same images, those of this round first.
        new: images of this round.
        temperature: of the similarities.
    """
    similarities = parts @ wholes.T / temperature
    own = torch.arange(len(parts), device=parts.device)
    each = F.cross_entropy(similarities, own, reduction="none")
    return each[:new].mean() + (each[new:].mean() if len(each) > new else 0)


def random_part(
    images: Tensor, area: tuple[float, float], flip: bool, rng: torch.Generator
) -> Tensor:
    """A random part of every image, enlarged to the whole image, and half of them mirrored.

    As RandomResizedCrop with bilinear interpolation, but a part may begin between two pixels, and
    sides longer than the image are cut. Two products with small matrices, so that the gradient is
    the same on every run, other than that of `grid_sample` on a GPU.

    Args:
        images: [B, C, H, W].
        area: smallest and largest share of an image; width : height is 3 : 4 to 4 : 3.
        flip: mirror left and right with probability 1/2.
        rng: on the images' device.
    """

    def draw(low: float, high: float) -> Tensor:
        return images.new_empty(len(images)).uniform_(low, high, generator=rng)

    height, width = images.shape[2:]
    side, stretch = draw(*area).sqrt(), draw(-math.log(4 / 3) / 2, math.log(4 / 3) / 2).exp()
    tall, wide = (side / stretch).clamp(max=1) * height, (side * stretch).clamp(max=1) * width
    rows = resampling(draw(0, 1) * (height - tall), tall, height)
    columns = resampling(draw(0, 1) * (width - wide), wide, width)
    if flip:
        columns = torch.where(draw(-1, 1)[:, None, None] < 0, columns.flip(1), columns)
    return torch.einsum("byh,bchw,bxw->bcyx", rows, images, columns)


def resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices that enlarge parts of a line of `size` pixels to the whole line, bilinearly.

    Part b has `length[b]` pixels from `start[b]`, both [B]. Row i of its matrix, [B, size, size],
    is how much of each pixel is in the new pixel i.
    """
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    inside = ((pixel + 0.5) * length[:, None] / size - 0.5).clamp(min=0)
    place = start[:, None] + torch.minimum(inside, length[:, None] - 1)
    return (1 - (place[..., None] - pixel).abs()).clamp(min=0)
