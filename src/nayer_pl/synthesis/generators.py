"""Generators: features of a label -> an image in [0, 1]."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from nayer_pl.errors import InputError


class Generator(nn.Module):
    """Linear, then convolutions between nearest-neighbour upsamplings, then a sigmoid.

    The first two convolutions of a 32 or 64 px image have 2 and 1 times `width` channels; deeper
    generators start from as many more doublings.

    Args:
        features: size of the input.
        image_shape: (C, H, W); H and W must be divisible by 2**upsamplings.
        width: channels before the last convolution.
        upsamplings: doublings of the resolution.
        max_channels: channels are never more than this.
    """

    def __init__(
        self,
        features: int,
        image_shape: Sequence[int],
        width: int = 64,
        upsamplings: int = 2,
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape
        scale = 2**upsamplings
        if height % scale or wide % scale:
            raise InputError(
                f"The generator doubles its resolution {upsamplings} times and cannot make "
                f"{height}x{wide} images; choose sides divisible by {scale}."
            )
        widths = [min(width * 2**i, max_channels) for i in reversed(range(upsamplings))]
        start = (widths[0], height // scale, wide // scale)
        layers: list[nn.Module] = [
            nn.Linear(features, math.prod(start)),
            nn.Unflatten(1, start),
            nn.BatchNorm2d(widths[0]),
        ]
        previous = widths[0]
        for out in widths:
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(previous, out, 3, padding=1),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            previous = out
        layers += [nn.Conv2d(previous, channels, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """[B, features] -> images in [0, 1], [B, C, H, W]."""
        return self.layers(features)

    def reset_parameters(self) -> None:
        """Start anew in place: optimizers keep pointing at the same parameters."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()


class DeepGenerator(Generator):
    """For 224 px: from 14x14 by four upsamplings, five convolutions."""

    def __init__(self, features: int, image_shape: Sequence[int], width: int = 64) -> None:
        super().__init__(features, image_shape, width, upsamplings=4)
