"""ResNets for 224 px images (He et al., 2016, arXiv 1512.03385, table 1).

Parameter names are torchvision's (`conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so
that the state dicts it publishes load unchanged. As there, a bottleneck halves the resolution in
its 3x3 convolution and not in the first 1x1 ("v1.5").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.cifar_resnet import BasicBlock, downsample


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


class ImageNetResNet(nn.Module):
    """7x7 stem, max pooling, four stages of widths 64 to 512, average pooling, linear.

    The resolution is halved five times: 224 px leave 7x7 features.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width_in = 64
        for stage, depth in enumerate(depths, start=1):
            width, blocks = 32 * 2**stage, []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(width_in, width, stride))
                width_in = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(torch.mean(x, dim=(2, 3)))


@architecture
def resnet18_imagenet(num_classes: int, channels: int = 3) -> ImageNetResNet:
    """ResNet-18 for 224 px; 11.69 M parameters at 1000 classes."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2), num_classes, channels)


@architecture
def resnet34_imagenet(num_classes: int, channels: int = 3) -> ImageNetResNet:
    """ResNet-34 for 224 px; 21.80 M parameters at 1000 classes."""
    return ImageNetResNet(BasicBlock, (3, 4, 6, 3), num_classes, channels)


@architecture
def resnet50_imagenet(num_classes: int, channels: int = 3) -> ImageNetResNet:
    """ResNet-50 for 224 px; 25.56 M parameters at 1000 classes."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3), num_classes, channels)
