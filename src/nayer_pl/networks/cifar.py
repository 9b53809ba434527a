"""Networks of the data-free literature for small images: wide residual networks and VGG.

Parameter names follow the checkpoints that this literature publishes (`block1.layer.0.conv1`,
`convShortcut`, `fc`; `block0.0`, `classifier`), so that those load unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.registry import architecture

__all__ = ["vgg11", "wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2"]


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions.

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nn.Module):
    """A run of blocks; the first one changes width and resolution."""

    def __init__(self, depth: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            PreActivationBlock(in_channels, out_channels, stride),
            *(PreActivationBlock(out_channels, out_channels, 1) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-factor (Zagoruyko and Komodakis, 2016, arXiv 1605.07146).

    Stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `factor` wide.
    """

    def __init__(self, depth: int, factor: int, num_classes: int, channels: int) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, widths[0], 1)
        self.block2 = Stage(blocks, widths[0], widths[1], 2)
        self.block3 = Stage(blocks, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], H and W at least 4 -> logits [B, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.mean(F.relu(self.bn1(x)), dim=(2, 3)))


@architecture
def wrn16_1(num_classes: int, channels: int = 3) -> WideResNet:
    """WRN-16-1; 0.18 M parameters at 10 classes."""
    return WideResNet(16, 1, num_classes, channels)


@architecture
def wrn16_2(num_classes: int, channels: int = 3) -> WideResNet:
    """WRN-16-2; 0.69 M parameters at 10 classes."""
    return WideResNet(16, 2, num_classes, channels)


@architecture
def wrn40_1(num_classes: int, channels: int = 3) -> WideResNet:
    """WRN-40-1; 0.56 M parameters at 10 classes."""
    return WideResNet(40, 1, num_classes, channels)


@architecture
def wrn40_2(num_classes: int, channels: int = 3) -> WideResNet:
    """WRN-40-2; 2.24 M parameters at 10 classes."""
    return WideResNet(40, 2, num_classes, channels)


class VGG(nn.Module):
    """VGG with BatchNorm (Simonyan and Zisserman, 2015, arXiv 1409.1556).

    Five blocks of 3x3 convolutions, halved in between, global average pooling, linear.
    """

    def __init__(self, blocks: list[list[int]], num_classes: int, channels: int) -> None:
        super().__init__()
        self.depth = len(blocks)
        width_in = channels
        for i, widths in enumerate(blocks):
            layers: list[nn.Module] = []
            for width in widths:
                convolution = nn.Conv2d(width_in, width, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                width_in = width
            self.add_module(f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(width_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], H and W at least 16 -> logits [B, num_classes]."""
        for i in range(self.depth):
            x = self.get_submodule(f"block{i}")(x if i == 0 else F.max_pool2d(x, 2))
        return self.classifier(torch.mean(x, dim=(2, 3)))


@architecture
def vgg11(num_classes: int, channels: int = 3) -> VGG:
    """VGG-11 with BatchNorm and one linear layer; 9.23 M parameters at 10 classes."""
    return VGG([[64], [128], [256, 256], [512, 512], [512, 512]], num_classes, channels)
