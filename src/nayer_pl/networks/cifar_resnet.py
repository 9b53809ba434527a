"""ResNets of three stages for 32 px images (He et al., 2016, arXiv 1512.03385, section 4.2).

Shortcuts that change the width or the resolution are 1x1 convolutions (option B of the paper's
section 4.1; its own CIFAR networks pad with zeros), as in the checkpoints that are published for
CIFAR and in the networks that the distillation literature compares on. Parameter names are those
checkpoints' (`conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so that they load
unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.architecture import architecture


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


def downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut: a 1x1 convolution with BatchNorm, or nothing where the shape stays."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class CifarResNet(nn.Module):
    """ResNet-depth: a 3x3 stem, three stages of (depth - 2) / 6 blocks, pooling, linear.

    Args:
        depth: the number of layers with weights, 6 n + 2.
        widths: channels of the stem and of each stage.
        num_classes, channels: of the logits and of the images.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage in (1, 2, 3):
            width_in, width = widths[stage - 1 : stage + 1]
            blocks = [BasicBlock(width_in, width, stride=1 if stage == 1 else 2)]
            blocks += [BasicBlock(width, width, stride=1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(torch.mean(x, dim=(2, 3)))


@architecture
def resnet20(num_classes: int, channels: int = 3) -> CifarResNet:
    """ResNet-20; 0.27 M parameters at 10 classes."""
    return CifarResNet(20, (16, 16, 32, 64), num_classes, channels)


@architecture
def resnet32(num_classes: int, channels: int = 3) -> CifarResNet:
    """ResNet-32; 0.47 M parameters at 10 classes."""
    return CifarResNet(32, (16, 16, 32, 64), num_classes, channels)


@architecture
def resnet56(num_classes: int, channels: int = 3) -> CifarResNet:
    """ResNet-56; 0.86 M parameters at 10 classes."""
    return CifarResNet(56, (16, 16, 32, 64), num_classes, channels)


@architecture
def resnet8x4(num_classes: int, channels: int = 3) -> CifarResNet:
    """ResNet-8x4 of CRD (Tian et al., 2020, arXiv 1910.10699); 1.21 M parameters at 10 classes.

    Its stages are four times as wide as those of ResNet-8, its stem twice.
    """
    return CifarResNet(8, (32, 64, 128, 256), num_classes, channels)


@architecture
def resnet32x4(num_classes: int, channels: int = 3) -> CifarResNet:
    """ResNet-32x4 of CRD (Tian et al., 2020, arXiv 1910.10699); 7.41 M parameters at 10 classes.

    Its stages are four times as wide as those of ResNet-32, its stem twice.
    """
    return CifarResNet(32, (32, 64, 128, 256), num_classes, channels)
