"""MobileNetV2 at width 1.0 (Sandler et al., 2018, arXiv 1801.04381).

Parameter names are torchvision's (`features.0.0`, `features.2.conv.0.0`, `classifier.1`), so that
the state dicts published in that layout load unchanged.
"""

import torch
from torch import Tensor, nn

from nayer_pl.networks.registry import architecture

__all__ = ["mobilenetv2", "mobilenetv2_imagenet"]

# Expansion, channels and number of blocks of each stage (table 2 of the paper).
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolution, around a shortcut where it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [_convolution(in_channels, hidden, 1)]),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, 1x1 convolution, pooling, dropout, linear.

    Args:
        strides: of the stem, and of the first block of each stage.
        num_classes, channels: of the logits and of the images.
    """

    def __init__(self, strides: tuple[int, ...], num_classes: int, channels: int) -> None:
        super().__init__()
        width_in = 32
        layers: list[nn.Module] = [_convolution(channels, width_in, 3, strides[0])]
        for (expansion, width, depth), stride in zip(STAGES, strides[1:], strict=True):
            for i in range(depth):
                layers.append(InvertedResidual(width_in, width, stride if i == 0 else 1, expansion))
                width_in = width
        self.features = nn.Sequential(*layers, _convolution(width_in, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        return self.classifier(torch.mean(self.features(x), dim=(2, 3)))


@architecture
def mobilenetv2(num_classes: int, channels: int = 3) -> MobileNetV2:
    """MobileNetV2 for 32 px; 2.24 M parameters at 10 classes.

    Stem and second stage do not halve the resolution: 32 px leave 4x4 features. This is the
    `mobilenetv2_x1_0` of the CIFAR checkpoints in torchvision's layout, with all of the paper's
    channels; CRD's MobileNetV2 (arXiv 1910.10699) is another one, half as wide and with a stem of
    stride 2.
    """
    return MobileNetV2((1, 1, 1, 2, 2, 1, 2, 1), num_classes, channels)


@architecture
def mobilenetv2_imagenet(num_classes: int, channels: int = 3) -> MobileNetV2:
    """MobileNetV2 for 224 px, as in the paper; 3.50 M parameters at 1000 classes.

    The resolution is halved five times: 224 px leave 7x7 features.
    """
    return MobileNetV2((2, 1, 2, 2, 2, 1, 2, 1), num_classes, channels)
