"""ResNets for 224 px images (He et al., 2016, arXiv 1512.03385, table 1).

Parameter names are torchvision's (`conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so
that the state dicts it publishes load unchanged.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.residual import BasicBlock, Block, Bottleneck, ResidualNetwork


class ImageNetResNet(ResidualNetwork):
    """7x7 stem, max pooling, four stages of widths 64 to 512, average pooling, linear.

    The resolution is halved five times: 224 px leave 7x7 features.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(self.add_stages(block, depths, (64, 128, 256, 512), 64), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.features(F.max_pool2d(x, 3, stride=2, padding=1)))


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
