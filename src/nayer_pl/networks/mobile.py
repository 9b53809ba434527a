"""Small networks for phones: MobileNetV2 (arXiv 1801.04381) and ShuffleNetV2 (arXiv 1807.11164).

Parameter names are torchvision's (`features.0.0`, `stage2.0.branch1.0`, `fc`), so that the state
dicts published in that layout load unchanged.
"""

import torch
from torch import Tensor, nn

from nayer_pl.networks.registry import architecture

__all__ = ["mobilenetv2", "mobilenetv2_imagenet", "shufflenetv2"]

# Expansion, channels and number of blocks of each stage (table 2 of the paper).
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    return layers if activation is None else [*layers, activation()]


def _clipped(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """MobileNetV2's convolution, whose ReLU ends at 6."""
    return nn.Sequential(
        *_convolution(in_channels, out_channels, kernel, stride, groups, activation=nn.ReLU6)
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolution, around a shortcut where it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [_clipped(in_channels, hidden, 1)]),
            _clipped(hidden, hidden, 3, stride, groups=hidden),
            *_convolution(hidden, out_channels, activation=None),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, 1x1 convolution, pooling, dropout, linear.

    `strides` are those of the stem and of the first block of each stage.
    """

    def __init__(self, strides: tuple[int, ...], num_classes: int, channels: int) -> None:
        super().__init__()
        width_in = 32
        layers: list[nn.Module] = [_clipped(channels, width_in, 3, strides[0])]
        for (expansion, width, depth), stride in zip(STAGES, strides[1:], strict=True):
            for i in range(depth):
                layers.append(InvertedResidual(width_in, width, stride if i == 0 else 1, expansion))
                width_in = width
        self.features = nn.Sequential(*layers, _clipped(width_in, 1280, 1))
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


class ShuffleUnit(nn.Module):
    """Two branches whose channels then take turns (figure 3c and d of the paper).

    Where the width changes, both branches convolve all channels and halve the resolution. Elsewhere
    the first keeps one half of the channels, and the second convolves the other half.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width, self.halves = out_channels // 2, in_channels != out_channels
        stride, branch_in = (2, in_channels) if self.halves else (1, width)
        if self.halves:
            self.branch1 = nn.Sequential(
                *_convolution(in_channels, in_channels, 3, 2, in_channels, activation=None),
                *_convolution(in_channels, width),
            )
        self.branch2 = nn.Sequential(
            *_convolution(branch_in, width),
            *_convolution(width, width, 3, stride, width, activation=None),
            *_convolution(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        left, right = (self.branch1(x), x) if self.halves else x.chunk(2, dim=1)
        return torch.stack((left, self.branch2(right)), dim=2).flatten(1, 2)


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    rest = (ShuffleUnit(out_channels, out_channels) for _ in range(depth - 1))
    return nn.Sequential(ShuffleUnit(in_channels, out_channels), *rest)


class ShuffleNetV2(nn.Module):
    """3x3 stem, three stages that halve the resolution, 1x1 convolution, pooling, linear."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_convolution(channels, 24, 3))
        self.stage2 = _stage(24, 116, depth=4)
        self.stage3 = _stage(116, 232, depth=8)
        self.stage4 = _stage(232, 464, depth=4)
        self.conv5 = nn.Sequential(*_convolution(464, 1024))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        x = self.stage4(self.stage3(self.stage2(self.conv1(x))))
        return self.fc(torch.mean(self.conv5(x), dim=(2, 3)))


@architecture
def shufflenetv2(num_classes: int, channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 1x for 32 px; 1.26 M parameters at 10 classes.

    The stem has stride 1 and no max pooling: 32 px leave 4x4 features. This is the
    `shufflenetv2_x1_0` of the CIFAR checkpoints in torchvision's layout, with all of the paper's
    channels (table 5); CRD's ShuffleV2 (arXiv 1910.10699) has a 1x1 stem and other names.
    """
    return ShuffleNetV2(num_classes, channels)
