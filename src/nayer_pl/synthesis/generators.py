"""Generators: features of a label, or noise -> an image in [0, 1]."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nayer_pl.errors import InputError
from nayer_pl.runtime.options import checked

log = logging.getLogger(__name__)

MAX_CHANNELS = 512
LARGE_LAYER = 2e8  # weights; with gradient and Adam's averages 3 GB


class UpsampledConv(nn.Conv2d):
    """Nearest-neighbour upsampling x2, then a 3x3 convolution, in four ninths of the products.

    Every output pixel sees only 2x2 different input pixels, so four 2x2 convolutions of the small
    image, one for each parity of the row and column, with sums of the 3x3 weights, give exactly the
    same. (Shi et al., 2016, arXiv 1609.07009, on convolution at low resolution.)
    """

    # Which of the two input rows each of the three weight rows falls on, for even and odd outputs.
    ROWS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, 2 H, 2 W]."""
        # Measured to pay only there (benchmarks/README.md).
        if x.device.type != "cpu" or self.out_channels < 24:
            with torch.autocast(x.device.type, enabled=False):  # which would make it float32
                x = F.interpolate(x, scale_factor=2)
            return super().forward(x)
        rows = self.weight.new_tensor(self.ROWS)
        weight = torch.einsum("pkr,qls,oirs->pqoikl", rows, rows, self.weight).flatten(0, 2)
        assert self.bias is not None
        out = F.conv2d(x, weight, self.bias.repeat(4), padding=1).permute(0, 2, 3, 1)
        return _Interleave.apply(out).permute(0, 3, 1, 2)


class _Interleave(torch.autograd.Function):
    """[B, H + 1, W + 1, 4 C], parities side by side -> [B, 2 H, 2 W, C].

    There is a border row and column more than the image has: even outputs leave out the last one,
    odd ones the first. Its gradient is written in one pass, not summed over four.
    """

    @staticmethod
    def forward(ctx: Any, windows: Tensor) -> Tensor:
        batch, rows, columns, channels = windows.shape
        height, width = rows - 1, columns - 1
        parities = windows.unflatten(3, (2, 2, channels // 4))
        lines = [
            torch.stack([parities[:, p : p + height, q : q + width, p, q] for q in (0, 1)], dim=3)
            for p in (0, 1)
        ]
        return torch.stack(lines, dim=2).view(batch, 2 * height, 2 * width, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        batch, rows, columns, channels = gradient.shape
        height, width = rows // 2, columns // 2
        windows = gradient.new_empty(batch, height + 1, width + 1, 2, 2, channels)
        for p in (0, 1):
            unused = (1 - p) * height, (1 - p) * width
            windows[:, unused[0], :, p], windows[:, :, unused[1], :, p] = 0, 0
            for q in (0, 1):
                windows[:, p : p + height, q : q + width, p, q] = gradient[:, p::2, q::2]
        return windows.flatten(3)


class Generator(nn.Module):
    """Linear, then convolutions between nearest-neighbor upsamplings, then a sigmoid.

    The first two convolutions of a 32 or 64 px image have 2 and 1 times `width` channels; deeper
    generators start from as many more doublings.

    Args:
        features: Size of the input.
        image_shape: (C, H, W) of the images; H and W must be divisible by 2**upsamplings.
        width: Channels before the last convolution.
        upsamplings: Doublings of the resolution.

    Raises:
        InputError: Sides of the image are not divisible, or a size is below 1.

    Example:
        >>> generator = Generator(features=8, image_shape=(3, 32, 32), width=4)
        >>> generator(torch.randn(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    @checked
    def __init__(
        self,
        features: PositiveInt,
        image_shape: Sequence[PositiveInt],
        width: PositiveInt = 64,
        upsamplings: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape
        scale = 2**upsamplings
        if height % scale or wide % scale:
            raise InputError(
                f"The generator doubles its resolution {upsamplings} times and cannot make "
                f"{height}x{wide} images; choose sides divisible by {scale}."
            )
        widths = [min(width * 2**i, MAX_CHANNELS) for i in reversed(range(upsamplings))]
        start = (widths[0], height // scale, wide // scale)
        if features * math.prod(start) > LARGE_LAYER:
            log.warning(
                "The generator's first layer has %s million weights, because it starts from "
                "%sx%s pixels; nayer_pl.DeepGenerator starts from 14x14 of 224.",
                f"{features * math.prod(start) / 1e6:,.0f}", *start[1:],
            )  # fmt: skip
        layers: list[nn.Module] = [
            nn.Linear(features, math.prod(start)),
            nn.Unflatten(1, start),
            nn.BatchNorm2d(widths[0]),
        ]
        previous = widths[0]
        for out in widths:
            layers += [UpsampledConv(previous, out), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
            previous = out
        layers.append(nn.Conv2d(previous, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """[B, features] -> images in [0, 1], at least float32, [B, C, H, W]."""
        out = self.layers(features)
        return out.to(torch.promote_types(out.dtype, torch.float32)).sigmoid()


class DeepGenerator(Generator):
    """A generator for 224 px: from 14x14 by four upsamplings, five convolutions.

    Args:
        features: Size of the input.
        image_shape: (C, H, W) of the images; H and W must be divisible by 16.
        width: Channels before the last convolution.

    Example:
        >>> DeepGenerator(features=8, image_shape=(3, 32, 32), width=4)(torch.randn(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, features: int, image_shape: Sequence[int], width: int = 64) -> None:
        super().__init__(features, image_shape, width, upsamplings=4)


def reset_parameters_(generator: nn.Module) -> None:
    """Draw all weights again, in place: optimizers keep pointing at the same parameters."""
    for layer in generator.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()


@torch.no_grad()
def dcgan_reset_(generator: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights from N(0, 0.02) as in DCGAN, in place.

    Radford et al., 2016, arXiv 1511.06434, section 3.
    """
    reset_parameters_(generator)
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            layer.weight.normal_(0, 0.02, generator=rng)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.normal_(1, 0.02, generator=rng)
