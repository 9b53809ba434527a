"""ResNets of three stages for 32 px images (He et al., 2016, arXiv 1512.03385, section 4.2).

Shortcuts that change the width or the resolution are 1x1 convolutions (option B of the paper's
section 4.1; its own CIFAR networks pad with zeros), as in the checkpoints that are published for
CIFAR and in the networks that the distillation literature compares on. Parameter names are those
checkpoints' (`conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so that they load
unchanged.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.residual import BasicBlock, ResidualNetwork


class CifarResNet(ResidualNetwork):
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
        depths = 3 * [(depth - 2) // 6]
        width = self.add_stages(BasicBlock, depths, widths[1:], widths[0])
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, num_classes]."""
        return self.fc(self.features(F.relu(self.bn1(self.conv1(x)))))


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
