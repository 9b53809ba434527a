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


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


def _branch(in_channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_pointwise(in_channels, width), *_depthwise(width, stride), *_pointwise(width, width)
    )


def shuffle(left: Tensor, right: Tensor) -> Tensor:
    """Two [B, C, H, W] -> [B, 2 C, H, W], their channels in turn."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


class BasicUnit(nn.Module):
    """Convolves one half of the channels and keeps the other (figure 3c of the paper)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch2 = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        kept, convolved = x.chunk(2, dim=1)
        return shuffle(kept, self.branch2(convolved))


class DownsamplingUnit(nn.Module):
    """Halves the resolution in two branches of all channels (figure 3d of the paper)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = out_channels // 2
        self.branch1 = nn.Sequential(
            *_depthwise(in_channels, stride=2), *_pointwise(in_channels, width)
        )
        self.branch2 = _branch(in_channels, width, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / 2, W / 2]."""
        return shuffle(self.branch1(x), self.branch2(x))


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    rest = (BasicUnit(out_channels) for _ in range(depth - 1))
    return nn.Sequential(DownsamplingUnit(in_channels, out_channels), *rest)


class ShuffleNetV2(nn.Module):
    """3x3 stem, three stages that halve the resolution, 1x1 convolution, pooling, linear."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.stage2 = _stage(24, 116, depth=4)
        self.stage3 = _stage(116, 232, depth=8)
        self.stage4 = _stage(232, 464, depth=4)
        self.conv5 = nn.Sequential(*_pointwise(464, 1024))
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
