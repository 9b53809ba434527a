"""ResNets (He et al., 2016, arXiv 1512.03385): for small images, for CIFAR and for ImageNet.

Parameter names are those of published checkpoints, so that these load unchanged:

- `resnet18`, `resnet34`, `resnet50`: of the data-free distillation literature
  (`layer2.0.shortcut.0`, `linear`);
- `resnet20` to `resnet32x4`: of the checkpoints published for CIFAR, and
- `resnet18_imagenet` to `resnet50_imagenet`: torchvision's (`layer2.0.downsample.0`, `fc`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.registry import architecture

__all__ = [
    "resnet8x4", "resnet18", "resnet18_imagenet", "resnet20", "resnet32", "resnet32x4", "resnet34",
    "resnet34_imagenet", "resnet50", "resnet50_imagenet", "resnet56",
]  # fmt: skip


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which `shortcut` names in checkpoints."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        self.add_module(shortcut, projection(in_channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.get_submodule(self.shortcut_name)(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, which `shortcut` names in checkpoints.

    The 3x3 convolution halves the resolution, where the paper has the first 1x1 do it ("v1.5").
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut_name = shortcut
        self.add_module(shortcut, projection(in_channels, out_channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.get_submodule(self.shortcut_name)(x))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution with BatchNorm where the shape changes, else nothing.

    This is option B of the paper's section 4.1. Its own CIFAR networks pad with zeros instead, but
    the published CIFAR checkpoints and the distillation literature use option B.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Stem, stages of `depths` blocks, global average pooling, linear.

    `widths` are the channels of the stem, then the width of each stage; every stage but the first
    halves the resolution. The stem is 3x3 and keeps it; `for_imagenet` it is 7x7 of stride 2 and
    followed by max pooling. `shortcut` and `head`, the last layer, are names in checkpoints.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        channels: int,
        for_imagenet: bool = False,
        shortcut: str = "downsample",
        head: str = "fc",
    ) -> None:
        super().__init__()
        self.for_imagenet, self.head_name = for_imagenet, head
        kernel, stride = (7, 2) if for_imagenet else (3, 1)
        in_channels = widths[0]
        self.conv1 = nn.Conv2d(channels, in_channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.stage_names = [f"layer{i}" for i in range(1, len(depths) + 1)]
        for name, depth, width in zip(self.stage_names, depths, widths[1:], strict=True):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and name != "layer1" else 1
                blocks.append(block(in_channels, width, stride, shortcut))
                in_channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.add_module(head, nn.Linear(in_channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.for_imagenet:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.get_submodule(self.head_name)(torch.mean(x, dim=(2, 3)))


WIDTHS = (64, 64, 128, 256, 512)
NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)  # for CIFAR


def _small(block: Block, depths: Sequence[int], num_classes: int, channels: int) -> ResNet:
    """A network of the data-free distillation literature."""
    return ResNet(block, depths, WIDTHS, num_classes, channels, shortcut="shortcut", head="linear")


@architecture
def resnet18(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-18 for small images, at least 8 px; 11.17 M parameters at 10 classes."""
    return _small(BasicBlock, (2, 2, 2, 2), num_classes, channels)


@architecture
def resnet34(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-34 for small images, at least 8 px; 21.28 M parameters at 10 classes."""
    return _small(BasicBlock, (3, 4, 6, 3), num_classes, channels)


@architecture
def resnet50(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-50 for small images, at least 8 px; 23.52 M parameters at 10 classes."""
    return _small(Bottleneck, (3, 4, 6, 3), num_classes, channels)


@architecture
def resnet18_imagenet(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-18 for 224 px; 11.69 M parameters at 1000 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), WIDTHS, num_classes, channels, for_imagenet=True)


@architecture
def resnet34_imagenet(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-34 for 224 px; 21.80 M parameters at 1000 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), WIDTHS, num_classes, channels, for_imagenet=True)


@architecture
def resnet50_imagenet(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-50 for 224 px; 25.56 M parameters at 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), WIDTHS, num_classes, channels, for_imagenet=True)


def _cifar(depth: int, widths: Sequence[int], num_classes: int, channels: int) -> ResNet:
    """Three stages of (depth - 2) / 6 blocks (section 4.2)."""
    return ResNet(BasicBlock, 3 * [(depth - 2) // 6], widths, num_classes, channels)


@architecture
def resnet20(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-20 for 32 px; 0.27 M parameters at 10 classes."""
    return _cifar(20, NARROW, num_classes, channels)


@architecture
def resnet32(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-32 for 32 px; 0.47 M parameters at 10 classes."""
    return _cifar(32, NARROW, num_classes, channels)


@architecture
def resnet56(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-56 for 32 px; 0.86 M parameters at 10 classes."""
    return _cifar(56, NARROW, num_classes, channels)


@architecture
def resnet8x4(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-8x4 of CRD (Tian et al., 2020, arXiv 1910.10699); 1.21 M parameters at 10 classes.

    Its stages are four times as wide as those of ResNet-8, its stem twice.
    """
    return _cifar(8, WIDE, num_classes, channels)


@architecture
def resnet32x4(num_classes: int, channels: int = 3) -> ResNet:
    """ResNet-32x4 of CRD (Tian et al., 2020, arXiv 1910.10699); 7.41 M parameters at 10 classes.

    Its stages are four times as wide as those of ResNet-32, its stem twice.
    """
    return _cifar(32, WIDE, num_classes, channels)
